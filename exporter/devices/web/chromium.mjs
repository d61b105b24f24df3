// The device browser, outside the page: `node chromium.mjs PLAYWRIGHT FOLDER PROFILE`.
//
// Starts Chromium as FOLDER/browser.json says, with PROFILE as its empty user data directory, lets
// the page do the job and writes FOLDER/result.json.
//   {"executable": PATH, "url": URL of page.html, "phone": NAME or null, "throttle": RATE,
//    "sandbox": BOOL, "arguments": [...]}
import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';

const [library, folder, profile] = process.argv.slice(2);
const WIRE = 1;

class Died extends Error {
  constructor() {
    super('the page or the browser died: as a rule memory was full');
  }
}

// A phone's metrics with the version that the browser really has, in its user agent too.
async function disguise(devtools, phone) {
  const { product } = await devtools.send('Browser.getVersion');
  const version = product.split('/')[1];
  const userAgent = phone.userAgent.replace(/Chrome\/[\d.]+/, `Chrome/${version}`);
  const [, platformVersion, model] = /Android ([\d.]+); ([^)]+)\)/.exec(userAgent);
  const brands = [{ brand: 'Chromium', version: version.split('.')[0] }];
  await devtools.send('Emulation.setUserAgentOverride', {
    userAgent,
    userAgentMetadata: {
      brands, platform: 'Android', platformVersion, architecture: '', model, mobile: true,
    },
  });
}

// Why Chromium did not start, from playwright's message, which ends with what it printed.
function unstarted(message) {
  if (message.includes('No usable sandbox')) {
    return "Chromium's sandbox must start for this user, and did not; allow unprivileged user "
      + 'namespaces (sysctl kernel.unprivileged_userns_clone=1), or run as root in a container';
  }
  const said = [...message.matchAll(/\[err\] (.*)/g)].map((line) => line[1]);
  return `Chromium did not start: ${said.length ? said.join('; ') : message.split('\n')[0]}`;
}

async function main() {
  const setup = JSON.parse(await readFile(join(folder, 'browser.json')));
  const { chromium, devices } = await import(pathToFileURL(library));
  const phone = setup.phone && devices[setup.phone];
  const context = await chromium.launchPersistentContext(profile, {
    executablePath: setup.executable,
    chromiumSandbox: setup.sandbox,
    args: setup.arguments,
    timeout: 0, // whoever started this stops it
    ...(phone ?? {}),
  }).catch((error) => {
    throw new Error(unstarted(error.message));
  });
  context.setDefaultTimeout(0);
  const page = context.pages()[0] ?? (await context.newPage());
  const devtools = await context.newCDPSession(page);
  if (phone) await disguise(devtools, phone);
  const rates = [];
  await page.exposeFunction('throttle', async (on) => {
    const rate = on ? setup.throttle : 1;
    await devtools.send('Emulation.setCPUThrottlingRate', { rate });
    rates.push(rate);
  });
  await page.goto(setup.url);
  const result = await page.evaluate(async () => {
    return (await import('./page.mjs')).job(window.throttle);
  }).catch((error) => {
    throw /crashed|has been closed/.test(error.message) ? new Died() : error;
  });
  result.facts = { ...result.facts, browser: context.browser().version(), throttle_rates: rates };
  await context.close();
  return result;
}

let result;
try {
  result = await main();
} catch (error) {
  const reason = error instanceof Died ? 'memory' : 'failed';
  const message = String(error.message ?? error);
  result = { wire: WIRE, error: { reason, message } };
}
await writeFile(join(folder, 'result.json'), JSON.stringify(result));
process.exit(0);
