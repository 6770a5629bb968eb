"""Probing: does a runtime run here? Asked in a process of its own, since some engines abort where they cannot work.

`python -m lutbuilder_agent.runtimes.probe NAME [OPTION=VALUE ...]` loads the runtime, runs one 8x8 op, compares its
output with the reference, looks at the clock the runtime is timed with, and prints one JSON line. `probe` starts that
process and makes a RuntimeReport of whatever happens.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import zlib
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass

from lutbuilder_agent.errors import LutbuilderError, RuntimeUnavailable
from lutbuilder_agent.graph import Layer, LayerGraph
from lutbuilder_agent.records import Format, RuntimeReport
from lutbuilder_agent.runtimes import entry, load

PROBE_GRAPH = LayerGraph(
    batch=1,
    in_channels=2,
    height=8,
    width=8,
    layers=(Layer(kind="conv2d", inputs=(0,), out_channels=2, kernel=3, act="relu6"),),
)
_TOLERANCE = 1e-3


def probe(name: str, timeout_s: float = 60.0, *, options: Mapping[str, str] | None = None) -> RuntimeReport:
    """Return whether runtime `name` runs here, its version, or why not and what to type.

    A crash or abort is an answer ("unavailable: signal 11"), and so is silence for `timeout_s`. Raises UnknownName.
    """
    canonical, _ = entry(name)
    settings = [f"{key}={value}" for key, value in (options or {}).items()]
    command = [sys.executable, "-m", "lutbuilder_agent.runtimes.probe", canonical, *settings]
    try:
        ended = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=timeout_s, check=False
        )
    except subprocess.TimeoutExpired:
        return _unavailable(canonical, f"no answer within {timeout_s:g} s")
    last_words = _last_line(ended.stderr)
    if ended.returncode < 0:
        return _unavailable(canonical, f"signal {-ended.returncode}", last_words)
    try:
        answer = json.loads(_last_line(ended.stdout))
        return RuntimeReport(
            name=canonical,
            version=str(answer["version"]),
            available=not answer["reason"],
            reason=str(answer["reason"]),
            timer_overhead_ns=answer["timer_overhead_ns"],
            timer_quantum_ns=answer["timer_quantum_ns"],
        )
    except (ValueError, TypeError, KeyError):
        return _unavailable(canonical, f"exit status {ended.returncode} without an answer", last_words)


def probe_all(names: Iterable[str]) -> tuple[RuntimeReport, ...]:
    """Return the report of each name, in order. Probes run side by side, one a core; no timing depends on them."""
    with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
        return tuple(pool.map(probe, names))


def probe_artifact(format: Format) -> bytes:
    """Return PROBE_GRAPH in `format`: stored bytes, since the agent builds no models; a test keeps them fresh."""
    if format == "graph":
        return PROBE_GRAPH.to_bytes()
    return zlib.decompress(base64.b85decode(_ARTIFACTS[format]))


def main(arguments: Sequence[str]) -> int:
    """Probe inside this process and print the answer; the exit status is 0 whenever there is an answer."""
    name, *settings = arguments
    options = dict(setting.split("=", 1) for setting in settings)
    reason = ""
    found = _Found()
    try:
        found = _run_once(name, options)
    except LutbuilderError as error:
        reason = str(error)
    except Exception as error:  # an engine may raise anything, and whatever it is, it is the answer
        reason = f"{type(error).__name__}: {error}"
    print(json.dumps({**asdict(found), "reason": reason}))
    return 0


@dataclass(frozen=True, slots=True)
class _Found:
    """What a runtime that runs says of itself, and of its clock."""

    version: str = ""
    timer_overhead_ns: int | None = None
    timer_quantum_ns: int | None = None


def _run_once(name: str, options: Mapping[str, str]) -> _Found:
    import numpy as np

    from lutbuilder_agent.reference import evaluate, example_input
    from lutbuilder_agent.timing import timer_facts

    runtime = load(name, threads=1, options=options)
    prepared = runtime.prepare(probe_artifact(runtime.format), instance=0)
    x = example_input(PROBE_GRAPH.shapes[0])
    found, expected = prepared.run(x), evaluate(PROBE_GRAPH, x)
    if found.shape != expected.shape:  # numpy would stretch some shapes to fit
        raise RuntimeUnavailable(f"runtime {name!r} gives output of shape {found.shape} here, not {expected.shape}")
    worst = float(np.abs(found - expected).max())
    if not worst <= _TOLERANCE:
        raise RuntimeUnavailable(f"runtime {name!r} gives wrong output here: off by {worst:g} from the reference")
    prepared.timed_call()
    timer = timer_facts(runtime.now_ns)
    return _Found(runtime.version(), timer.overhead_ns, timer.quantum_ns)


def _unavailable(name: str, what: str, last_words: str = "") -> RuntimeReport:
    return RuntimeReport(
        name=name, available=False, reason=f"unavailable: {what}" + (f" ({last_words})" if last_words else "")
    )


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1].strip() if lines else ""


_ARTIFACTS: Mapping[Format, str] = {
    "onnx": (
        "c-rIO5aP-yElDcP%t=Wtvf9nemB+=JnO9I+!o^f>z{QkgAjF$rS_0(9=Va!kCKf5NIOpe;Y4LEerWfUx7DzBIU}Vw~<>JXsEy_#Hi7(DbEJ$"
        "@=c3@t>$gU;G#Zr)%QtZG8fgm9PF81P*qRf=kVyFn01{bOYTr5?oMfqIJ#hDdCY!DfsojI8WLO>f63o^78GIB5hAu|WF0HYJokzNxRgWUsc`"
        "(nFodweGD+t%}YU%7*+y_Xf!zE6h)?TefC@5}PPY<KI+mA!XFx7eu&Fxnlte14C>t#`ILAv^c(JtSg(;F_%cFDVPV<FaM@W`rKKyTBc>_uro"
        "yyMmX??e?DxvUAS+WLs<&yno)Jo_$%}+IB`SR_vXhI?49S7q0ys+fLf;tZvw+=VEA6Q?cJRqJ8Z?Eg=pjkmHgJyf_TrSK0{LF1OL*6JS(gVE"
        "_Urun)C(A^ZalP9VQV$wR|kNQ_H_gHcF;i;05~h?#(x1B8<lxS+v-ONA2)7lVKx08|%`cm"
    ),
    "tflite": (
        "c-oU;U|<Mw^D!1-kYSKu5MdBt;9=lk009;tj{zvgz%T)b6Brp7a)9^&69WS?kPl=6)q(&QR1XV~#Q<b608L_GZ~$U{ATCZVD$C4Ek55TWODx"
        "SP0qX;);ehG^*~JXDje&s;i1SNJ3Q9{L=7Yoz{r~?TM6&{MW*%4yto{rTYe3aJgQ@|UW$?bzM$mS-4cKWw6G3*cLDhl$5$qmdd+W=Uy?wFWw"
        "s%Cg*!B2K+@~VIXt%BB_r4>S&+jRBFtr!B_0HDIifLa?$j-f=4hh=tJtSgZ+_Zn+forn%S^k&peo0x_9hWWJm({IpHzV|@ozaUGdoOTD?46%"
        "F$@br$8oMuFxb_#kTyEE~?WEoQlR<Vns~h$?=Y6u(b1}3jHVfWgQ?cK6-lCp;5$$XDu`sZJ-3AJ~oYIn{(#)Kc)FO!gMZkXGLy8v`AP*uA3g"
        "ZeOt^wi(sQ+>kGxHc2Q1yy{<B5lX8>&|Z5-^M^(D35{$0EpVc5u9af|n6$1|u}AnHiv(fS3tMoDnJxvU?6Fjex=*%5MP12?sQ;L3&CIA>xeC"
        "c;bMHKLDzOse#c+1_--&z^-Qi`<(}>h7n0^xdFsnCM35)^dZtQ57a&Zv~+~cJ+O4m0}eBUerOml0{~FYe1H"
    ),
}

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
