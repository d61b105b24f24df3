// `node warm_up.mjs RUNNER [MS, ...]`: what runner.mjs tells of a model whose runs take that many
// ms, the last value over and over, by a clock that only they move.
const [runner, times] = process.argv.slice(2);
const { run } = await import(runner);
const left = JSON.parse(times);
let now = 0;
Object.defineProperty(globalThis, 'performance', { value: { now: () => now } });

class Session {
  inputNames = ['x'];
  outputNames = [];
  async run() {
    now += left.length > 1 ? left.shift() : left[0];
    return {};
  }
}

const ort = {
  env: { wasm: {}, versions: { web: 'none' } },
  InferenceSession: { create: async () => new Session() },
};
const spec = {
  wire: 1, job: 'run', provider: 'wasm', external: [], disabled_optimizers: [], arrays: [], calls: 0,
  cost: true, workload: {}, threads: 1, repeats: 3,
};
const slowed = [];
const read = async () => new Uint8Array();
const [result] = await run(ort, spec, read, async (on) => slowed.push([on, now]));
console.log(JSON.stringify({ ...result, slowed }));
