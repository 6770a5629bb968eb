"""The plainest loop that times a model, for benchmarks/check_harness.py to compare with. Imports nothing of lutbuilder.

    python benchmarks/bare_loop.py onnxruntime|litert MODEL COPIES

Loads the model COPIES times. Each line on stdin, `COPY SECONDS`, is answered by one line of JSON: the seconds of every
call of a loop over that copy, at least 3 calls, after one that is thrown away.
"""

import json
import sys
from time import perf_counter

import numpy as np

engine, model, copies = sys.argv[1], sys.argv[2], int(sys.argv[3])
calls, kept = [], []
for _ in range(copies):
    if engine == "onnxruntime":
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        source, target = session.get_inputs()[0], session.get_outputs()[0]
        data = np.random.default_rng(0).standard_normal(source.shape, dtype=np.float32)
        binding = session.io_binding()
        binding.bind_ortvalue_input(source.name, ort.OrtValue.ortvalue_from_numpy(data))
        binding.bind_ortvalue_output(target.name, ort.OrtValue.ortvalue_from_shape_and_type(target.shape, np.float32))
        kept.append((session, data, binding))
        calls.append(lambda session=session, binding=binding: session.run_with_iobinding(binding))
    else:
        from ai_edge_litert.interpreter import Interpreter

        interpreter = Interpreter(model_path=model, num_threads=1)
        interpreter.allocate_tensors()
        source = interpreter.get_input_details()[0]
        data = np.random.default_rng(0).standard_normal(source["shape"], dtype=np.float32)
        interpreter.set_tensor(source["index"], data)
        kept.append(interpreter)
        calls.append(interpreter.invoke)
    calls[-1]()
print(json.dumps("ready"), flush=True)
for line in sys.stdin:
    copy, seconds = line.split()
    call = calls[int(copy)]
    call()
    took = []
    end = perf_counter() + float(seconds)
    while len(took) < 3 or perf_counter() < end:
        start = perf_counter()
        call()
        took.append(perf_counter() - start)
    print(json.dumps(took), flush=True)
