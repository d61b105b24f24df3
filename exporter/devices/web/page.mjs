// The device browser, inside the page: does the job, posts its outputs, returns its result.
import { run } from './runner.mjs';

async function read(name) {
  const answer = await fetch(name);
  if (!answer.ok) throw new Error(`${name} was not served (${answer.status})`);
  return new Uint8Array(await answer.arrayBuffer());
}

export async function job(throttle) {
  const spec = await (await fetch('spec.json')).json();
  const ort = await import('./dist/' + spec.library);
  const [result, outputs] = await run(ort, spec, read, throttle);
  if (outputs) {
    const answer = await fetch('outputs.bin', { method: 'POST', body: outputs });
    if (!answer.ok) throw new Error(`the outputs were not taken (${answer.status})`);
  }
  result.facts = {
    ...result.facts,
    threads: spec.threads,
    user_agent: navigator.userAgent,
    cross_origin_isolated: crossOriginIsolated,
    device_pixel_ratio: devicePixelRatio,
    viewport: [innerWidth, innerHeight],
    touch_points: navigator.maxTouchPoints,
    hardware_concurrency: navigator.hardwareConcurrency,
    device_memory_gib: navigator.deviceMemory ?? null,
    webgpu: await adapter(),
  };
  return result;
}

// What WebGPU runs on, or null. A fallback adapter is software that computes on the CPU.
async function adapter() {
  const found = await navigator.gpu?.requestAdapter();
  if (!found) return null;
  const { vendor, architecture, description, isFallbackAdapter } = found.info;
  return { vendor, architecture, description, software: isFallbackAdapter };
}
