"""Registry of interchange formats: name -> import path, imported when asked for. A new format is one line here."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import cast

from lutbuilder.lut.interchange.format import Format
from lutbuilder_agent.errors import unknown_name

_PACKAGE = "lutbuilder.lut.interchange"
FORMATS: Mapping[str, str] = {
    "proxyless-yaml": f"{_PACKAGE}.string_keys:PROXYLESS_YAML",
    "proxyless-csv": f"{_PACKAGE}.string_keys:PROXYLESS_CSV",
    "ofa-proxyless-yaml": f"{_PACKAGE}.string_keys:OFA_PROXYLESS_YAML",
    "ofa-mbv3-yaml": f"{_PACKAGE}.string_keys:OFA_MBV3_YAML",
    "dynamicofa-json": f"{_PACKAGE}.string_keys:DYNAMICOFA_JSON",
    "apq-json": f"{_PACKAGE}.apq:APQ_JSON",
    "haq-npy": f"{_PACKAGE}.haq:HAQ_NPY",
    "netadapt-pickle": f"{_PACKAGE}.netadapt:NETADAPT_PICKLE",
    "tfnas-pickle": f"{_PACKAGE}.tfnas:TFNAS_PICKLE",
    "fbnet-txt": f"{_PACKAGE}.fbnet:FBNET_TXT",
    "ofa-flops-npy": f"{_PACKAGE}.ofa_flops:OFA_FLOPS_NPY",
}


def names() -> tuple[str, ...]:
    """Return the formats there are."""
    return tuple(FORMATS)


def get(name: str) -> Format:
    """Return a format. Raises UnknownName listing what there is."""
    if name not in FORMATS:
        raise unknown_name("format", name, FORMATS)
    module, _, attribute = FORMATS[name].partition(":")
    return cast(Format, getattr(importlib.import_module(module), attribute))
