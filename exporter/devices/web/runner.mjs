// Run and measure an ONNX model on onnxruntime-web: what runner.py does, in Node and in a browser.
//
// run(ort, spec, read, throttle) does the job "run" of runner.py's wire. `spec` is
//   {"wire": 1, "job": "run" | "probe", "provider": "wasm" | "webgpu", "external": [FILE, ...],
//    "disabled_optimizers": [NAME, ...], "arrays": [ARRAY, ...], "calls": N, "cost": BOOL,
//    "workload": {...}, "threads": N, "repeats": N}
// where ARRAY is {"key": "0/x", "type": "float32", "shape": [...], "offset": N, "bytes": N}, a place
// in feeds.bin, little endian and aligned to 8 bytes. It gives [result, outputs]: the object that
// goes into result.json, with "arrays" that describe the bytes of outputs.bin in the same way.
// The job "probe" tells the facts and loads no model. Costs are taken of a model that is warm, see
// warmed(); none are taken with 0 repeats.

const WIRE = 1;
const PAST = 'past_key_values', PRESENT = 'present';
const ALIGNED = 8; // bytes: the widest element, which a typed array over the file asks for
// Engines run WebAssembly from code that was compiled in haste, and for seconds compile what is hot
// anew beside it: until then a small model can be 20 times slower.
const WINDOW = 10; // runs
const STEADY = 0.9; // of the median of the WINDOW runs before
const WARM_AT_LEAST_MS = 2000, WARM_AT_MOST_MS = 8000;
const ARRAYS = {
  float32: Float32Array, float64: Float64Array, int64: BigInt64Array, uint64: BigUint64Array,
  int32: Int32Array, uint32: Uint32Array, int16: Int16Array, uint16: Uint16Array,
  int8: Int8Array, uint8: Uint8Array, bool: Uint8Array, float16: Uint16Array,
};

class Refused extends Error {}

export async function run(ort, spec, read, throttle = async () => {}) {
  try {
    if (spec.wire !== WIRE) {
      throw new Error(`the job is of wire version ${spec.wire}, this runner speaks ${WIRE}`);
    }
    const [result, outputs] = await answered(ort, spec, read, throttle);
    return [{ wire: WIRE, runtime: ort.env.versions.web, ...result }, outputs];
  } catch (error) {
    const why = reason(error);
    const start = why === 'memory' ? 'memory was full (WebAssembly has 4 GiB at most): ' : '';
    return [{ wire: WIRE, error: { reason: why, message: start + message(error) } }, null];
  }
}

async function answered(ort, spec, read, throttle) {
  ort.env.wasm.numThreads = spec.threads;
  ort.env.logLevel = 'error';
  if (spec.job === 'probe') return [{ facts: {} }, null];
  const model = await read('model/model.onnx');
  const externalData = [];
  for (const path of spec.external) {
    externalData.push({ path, data: await read(`model/${path}`) });
  }
  const arrays = await feedsOf(ort, spec, read);

  await throttle(true);
  const began = performance.now();
  const session = await refusals(() => ort.InferenceSession.create(model, {
    executionProviders: [spec.provider],
    externalData,
    logSeverityLevel: 3,
    interOpNumThreads: 1,
    extra: spec.disabled_optimizers.length
      // what InferenceSession's disabled_optimizers of other languages becomes
      ? { optimization: { disable_specified_optimizers: spec.disabled_optimizers.join(';') } }
      : {},
  }));
  const load_ms = performance.now() - began;
  await throttle(false); // nobody times the warm-up, nor the answers
  const written = {}, times_ms = {};
  let facts = {};
  if (spec.cost) {
    const feeds = within(arrays, 'workload/');
    const first = performance.now();
    let turn;
    if (session.inputNames.some((name) => name.startsWith(PAST))) {
      const wrote = { tokens: [], logits: [] };
      await cachedTurn(ort, session, feeds.input_ids, spec.workload, wrote)();
      turn = cachedTurn(ort, session, feeds.input_ids, spec.workload);
      Object.assign(written, stacked(ort, wrote, feeds.input_ids.dims[0]));
    } else {
      turn = plainTurn(session, feeds);
      await turn();
    }
    if (spec.repeats) facts = await warmed(turn, first);
    await throttle(true);
    for (let repeat = 0; repeat < spec.repeats; repeat++) {
      for (const [phase, ms] of Object.entries(await turn())) (times_ms[phase] ??= []).push(ms);
    }
    await throttle(false);
  }
  const names = session.outputNames.filter((name) => !name.startsWith(PRESENT));
  for (let index = 0; index < spec.calls; index++) {
    const answers = await refusals(() => session.run(within(arrays, `${index}/`), names));
    for (const name of names) written[`${index}/${name}`] = answers[name];
  }
  const [described, outputs] = packed(written);
  const outputs_sha256 = await sha256(outputs);
  return [{ load_ms, times_ms, arrays: described, outputs_sha256, facts }, outputs];
}

// Run `turn`, which ran once since `began`, until it gets no faster or time is over. Gives the runs
// that it took, that first one too, and whether the last were steady.
async function warmed(turn, began) {
  const runs_ms = [performance.now() - began];
  for (;;) {
    const spent = performance.now() - began, later = runs_ms.slice(-WINDOW);
    const earlier = runs_ms.slice(-2 * WINDOW, -WINDOW);
    const warm_up_steady = spent >= WARM_AT_LEAST_MS && earlier.length === WINDOW
      && median(later) >= STEADY * median(earlier);
    if (warm_up_steady || spent >= WARM_AT_MOST_MS) {
      return { warm_up_runs: runs_ms.length, warm_up_steady };
    }
    const start = performance.now();
    await turn();
    runs_ms.push(performance.now() - start);
  }
}

function median(values) {
  return values.toSorted((a, b) => a - b)[values.length >> 1];
}

function plainTurn(session, feeds) {
  return async () => {
    const began = performance.now();
    await refusals(() => session.run(feeds));
    return { run: performance.now() - began };
  };
}

// Prefill of `prompt` (batch, length), then greedy steps on the grown cache. The cache passes
// through JavaScript at each step: that is what the CPU of onnxruntime-web costs its users.
function cachedTurn(ort, session, prompt, workload, wrote = null) {
  const inputs = Object.fromEntries(session.inputMetadata.map((input) => [input.name, input]));
  const [batch, length] = prompt.dims;

  const integers = (name, values, dims) => {
    const type = inputs[name].type;
    const array = type === 'int64' ? BigInt64Array.from(values, BigInt) : ARRAYS[type].from(values);
    return new ort.Tensor(type, array, dims);
  };
  // (batch, heads, past, head size): free in front is the batch, free elsewhere the past
  const empty = ({ type, shape }) => {
    const dims = shape.map((size, axis) => (Number.isInteger(size) ? size : axis ? 0 : batch));
    return new ort.Tensor(type, new ARRAYS[type](dims.reduce((a, b) => a * b, 1)), dims);
  };
  const step = async (ids, past, seen) => {
    const fresh = ids.length / batch;
    const places = Array.from({ length: fresh }, (_, i) => seen + i);
    const feeds = { ...past, input_ids: integers('input_ids', ids, [batch, fresh]) };
    if ('attention_mask' in inputs) {
      const ones = new Array(batch * (seen + fresh)).fill(1);
      feeds.attention_mask = integers('attention_mask', ones, [batch, seen + fresh]);
    }
    if ('position_ids' in inputs) {
      const rows = new Array(batch).fill(places).flat();
      feeds.position_ids = integers('position_ids', rows, [batch, fresh]);
    }
    if ('cache_position' in inputs) {
      feeds.cache_position = integers('cache_position', places, [fresh]);
    }
    const answers = await refusals(() => session.run(feeds));
    const grown = {};
    for (const [name, value] of Object.entries(answers)) {
      const next = name.startsWith(PRESENT) ? name.replace(PRESENT, PAST) : '';
      if (next in inputs) grown[next] = value;
    }
    const { tokens, last } = chosen(answers.logits, batch);
    if (wrote) {
      wrote.tokens.push(tokens);
      wrote.logits.push({ type: answers.logits.type, last });
    }
    return [tokens, grown];
  };
  return async () => {
    let past = {}, ids = Array.from(prompt.data, Number);
    for (const input of Object.values(inputs)) {
      if (input.name.startsWith(PAST)) past[input.name] = empty(input);
    }
    let began = performance.now();
    [ids, past] = await step(ids, past, 0);
    const prefill = performance.now() - began;
    began = performance.now();
    for (let done = 0; done < workload.decode_tokens; done++) {
      [ids, past] = await step(ids, past, length + done);
    }
    return { prefill, decode: (performance.now() - began) / workload.decode_tokens };
  };
}

// The greatest of each row's last logits; logits are (batch, new, vocabulary).
function chosen(logits, batch) {
  const [, fresh, vocabulary] = logits.dims;
  const last = [], tokens = [];
  for (let row = 0; row < batch; row++) {
    const begin = (row * fresh + fresh - 1) * vocabulary;
    const scores = logits.data.slice(begin, begin + vocabulary);
    // Node 20 has no Float16Array and shows the bits
    const value = logits.type === 'float16' && scores instanceof Uint16Array ? half : (x) => x;
    let best = 0;
    for (let i = 1; i < vocabulary; i++) if (value(scores[i]) > value(scores[best])) best = i;
    last.push(scores);
    tokens.push(best);
  }
  return { tokens, last };
}

// A half float (IEEE 754 binary16) from its bits.
function half(bits) {
  const sign = bits & 0x8000 ? -1 : 1, exponent = (bits >> 10) & 31, fraction = bits & 1023;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return sign * (exponent ? (1 + fraction / 1024) * 2 ** (exponent - 15) : fraction * 2 ** -24);
}

// tokens (batch, steps) and logits (steps, batch, vocabulary) as tensors
function stacked(ort, wrote, batch) {
  const steps = wrote.tokens.length, { type, last: [row] } = wrote.logits[0];
  const logits = new row.constructor(steps * batch * row.length);
  const tokens = new BigInt64Array(batch * steps);
  wrote.logits.forEach(({ last }, step) => last.forEach((scores, index) => {
    logits.set(scores, (step * batch + index) * row.length);
    tokens[index * steps + step] = BigInt(wrote.tokens[step][index]);
  }));
  return {
    tokens: new ort.Tensor('int64', tokens, [batch, steps]),
    logits: new ort.Tensor(type, logits, [steps, batch, row.length]),
  };
}

async function feedsOf(ort, spec, read) {
  const { buffer, byteOffset } = await read('feeds.bin');
  const feeds = {};
  for (const { key, type, shape, offset, bytes } of spec.arrays) {
    const kind = ARRAYS[type];
    const part = buffer.slice(byteOffset + offset, byteOffset + offset + bytes);
    feeds[key] = new ort.Tensor(type, new kind(part), shape);
  }
  return feeds;
}

function within(arrays, start) {
  const found = Object.entries(arrays).filter(([key]) => key.startsWith(start));
  return Object.fromEntries(found.map(([key, tensor]) => [key.slice(start.length), tensor]));
}

function packed(tensors) {
  const described = [];
  let size = 0;
  for (const [key, { type, dims, data }] of Object.entries(tensors)) {
    if (!(type in ARRAYS)) throw new Refused(`the output '${key}' is of type ${type}`);
    described.push({ key, type, shape: [...dims], offset: size, bytes: data.byteLength });
    size += Math.ceil(data.byteLength / ALIGNED) * ALIGNED;
  }
  const outputs = new Uint8Array(size);
  Object.values(tensors).forEach(({ data }, index) => {
    const bytes = new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
    outputs.set(bytes, described[index].offset);
  });
  return [described, outputs];
}

async function sha256(bytes) {
  const digest = new Uint8Array(await crypto.subtle.digest('SHA-256', bytes));
  return Array.from(digest, (byte) => byte.toString(16).padStart(2, '0')).join('');
}

// What onnxruntime itself throws, told apart from mistakes of this file.
async function refusals(call) {
  try {
    return await call();
  } catch (error) {
    throw new Refused(message(error), { cause: error });
  }
}

function message(error) {
  // A C++ exception that nobody caught arrives as the number of its place in memory.
  if (typeof error === 'number') return `onnxruntime-web stopped (${error})`;
  return String(error?.message ?? error).trim();
}

// Why it failed, in the word that the wire has for it. 32-bit addresses end at 4 GiB: a tensor
// beyond that is told as one of a wrong size.
function reason(error) {
  const text = message(error).toLowerCase();
  const full = ['bad_alloc', 'failed to allocate', 'out of memory', 'aborted(oom)',
    'integer overflow', 'tensor shape is too large', 'array buffer allocation failed',
    'invalid typed array length'];
  if (full.some((words) => text.includes(words))) return 'memory';
  // no backend: the runtime itself did not start, and the model is not to blame
  const refused = error instanceof Refused && !text.includes('no available backend');
  return refused ? 'refused' : 'failed';
}
