// The device wasm: `node node.mjs ORT FOLDER` does the job in FOLDER/spec.json.
import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { run } from './runner.mjs';

// Peak resident MiB since this program started, or null where there is no /proc. getrusage would
// tell the peak of whoever started it, if that was higher.
async function peak() {
  const status = await readFile('/proc/self/status', 'utf8').catch(() => '');
  const found = /^VmHWM:\s+(\d+) kB$/m.exec(status);
  return found && found[1] / 1024;
}

const [library, folder] = process.argv.slice(2);
const read = (name) => readFile(join(folder, name));
const ort = await import(pathToFileURL(library));
const spec = JSON.parse(await read('spec.json'));
const [result, outputs] = await run(ort, spec, read);
if (outputs) await writeFile(join(folder, 'outputs.bin'), outputs);
result.peak_mib = await peak();
result.facts = {
  ...result.facts, node: process.versions.node, v8: process.versions.v8, machine: process.arch,
  threads: spec.threads, simd: true,
};
await writeFile(join(folder, 'result.json'), JSON.stringify(result));
process.exit(0); // the threads of the runtime would keep it alive
