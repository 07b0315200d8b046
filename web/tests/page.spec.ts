// The page gives the pictures that the command gives, on the processor and on the
// graphics card. Models and expected pictures: `serve.py`.
import { execFileSync } from 'node:child_process';
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, test, type Locator, type Page } from '@playwright/test';
import { python, work } from '../playwright.config';

const pictures = (model: string) => readdirSync(join(work, 'pictures', model));
const picture = (...names: string[]) => join(work, 'pictures', ...names);

/** A visitor's page that has loaded the first model, and the errors that it had. */
async function visit(page: Page, device: string, isolated = true): Promise<string[]> {
  const errors: string[] = [];
  page.on('pageerror', (error) => errors.push(error.message));
  page.on('console', (line) => line.type() === 'error' && errors.push(line.text()));
  page.on('request', (request) => {
    const { protocol, hostname } = new URL(request.url());
    if (protocol !== 'blob:' && hostname !== '127.0.0.1') errors.push(request.url());
  });
  await page.addInitScript((chosen) => (localStorage.device = chosen), device);
  await page.goto('./');
  await page.waitForFunction((wanted) => crossOriginIsolated === wanted, isolated);
  await expect(page.locator('#engine')).toContainText('Runs on', { timeout: 150_000 });
  return errors;
}

const row = (page: Page, name: string) => page.locator('li', { hasText: name });
const add = (page: Page, ...files: string[]) => page.locator('#files').setInputFiles(files);

async function saved(page: Page, button: Locator, name: string): Promise<string> {
  const [download] = await Promise.all([page.waitForEvent('download'), button.click()]);
  const path = join(work, 'saved', name);
  await download.saveAs(path);
  return path;
}

async function difference(page: Page, model: string, name: string): Promise<number> {
  const item = row(page, name);
  await expect(item).toHaveClass('done', { timeout: 150_000 });
  const got = await saved(page, item.locator('.save'), `${model}-${name}.png`);
  const expected = join(work, 'expected', model, name.replace(/\.\w+$/, '.png'));
  return Number(execFileSync(python, ['tests/compare.py', got, expected]));
}

async function clear(page: Page): Promise<void> {
  while (await page.locator('.stop').count()) await page.locator('.stop').first().click();
}

async function compareAll(page: Page, model: string, names: string[]): Promise<void> {
  await add(page, ...names.map((name) => picture(model, name)));
  for (const name of names) expect.soft(await difference(page, model, name), name).toBeLessThanOrEqual(1);
}

test.describe('on the processor', () => {
  let page: Page;
  let errors: string[];

  test.beforeAll(async ({ browser }) => {
    page = await browser.newPage();
    errors = await visit(page, 'wasm');
    await expect(page.locator('#engine')).toContainText(/Processor \(\d+ threads?\)/);
  });
  test.beforeEach(() => clear(page));
  test.afterAll(() => page.close());

  test('every kind of picture is as the command makes it', async () => {
    const names = pictures('tiny');
    expect(names.length).toBeGreaterThan(9);
    await compareAll(page, 'tiny', names);
    expect(errors).toEqual([]);
  });

  test('what cannot be done is said, and the rest goes on', async () => {
    await add(page, join(work, 'pictures/damaged.png'), join(work, 'pictures/large.png'), picture('tiny', 'one.png'));
    await expect(row(page, 'damaged.png').locator('.state')).toHaveText(
      'This browser cannot read it: it is damaged, or no picture.',
    );
    await expect(row(page, 'large.png').locator('.state')).toHaveText(
      'The result would have 120 megapixels. This page makes at most 100.',
    );
    await expect(row(page, 'one.png')).toHaveClass('done');
  });

  test('results are saved in every format, and together', async () => {
    await add(page, picture('tiny', 'odd.png'), picture('tiny', 'clear.png'));
    await expect(row(page, 'clear.png')).toHaveClass('done');
    const kinds = { 'image/webp': 'RIFF', 'image/jpeg': '\xff\xd8\xff', 'image/png': '\x89PNG' };
    for (const [kind, magic] of Object.entries(kinds)) {
      await page.locator('#format').selectOption(kind);
      const path = await saved(page, row(page, 'clear.png').locator('.save'), `format-${kind.slice(6)}`);
      expect(readFileSync(path, 'latin1').startsWith(magic)).toBe(true);
    }
    const path = await saved(page, page.locator('#all'), 'pictures.zip');
    const names = execFileSync(python, ['-m', 'zipfile', '-l', path], { encoding: 'utf-8' });
    expect(names).toMatch(/odd_2x\.png[^]*clear_2x\.png/);
    execFileSync(python, ['-m', 'zipfile', '-t', path]);
  });

  test('it can be used with the keyboard, at every width', async () => {
    await add(page, picture('tiny', 'sample.png'));
    await expect(row(page, 'sample.png')).toHaveClass('done');
    await page.locator('#split').focus();
    await page.keyboard.press('End');
    const shown = () => page.locator('.before').evaluate((before) => {
      const [, right] = getComputedStyle(before).clipPath.match(/calc\(100% - ([\d.]+)px\)/)!;
      return Number(right) / before.clientWidth;
    });
    expect(await shown()).toBeGreaterThanOrEqual(1);
    await page.setViewportSize({ width: 390, height: 640 });
    await page.evaluate(() => scrollTo(0, 0));
    await row(page, 'sample.png').getByRole('button', { name: 'Compare' }).press('Enter');
    await expect(page.locator('.tag').first()).toBeInViewport();
    await page.setViewportSize({ width: 1280, height: 800 });
    await page.getByRole('radio', { name: 'Fit' }).focus();
    await page.keyboard.press('ArrowRight');
    await expect(page.getByRole('radio', { name: '1:1' })).toBeChecked();
    await expect(page.locator('.after')).toHaveJSProperty('clientWidth', 512);
    for (const width of [390, 768, 1280]) {
      await page.setViewportSize({ width, height: 800 });
      expect(await page.evaluate(() => document.documentElement.scrollWidth)).toBeLessThanOrEqual(width);
    }
  });

  test('texts have enough contrast, by day and by night', async () => {
    await add(page, join(work, 'pictures/damaged.png'), picture('tiny', 'one.png'));
    await expect(row(page, 'one.png')).toHaveClass('done');
    for (const colorScheme of ['light', 'dark'] as const) {
      await page.emulateMedia({ colorScheme });
      const low = await page.evaluate(lowContrast);
      expect(low, colorScheme).toEqual([]);
    }
  });

  test('other models, and Cancel in the middle', async () => {
    const names = { shipped4: '4x_aether_small', shipped: '2x_aether_small' };
    for (const name of ['gray1', 'gray2', 'gray3', 'gray4', 'gray8', 'shipped4', 'shipped'] as const) {
      await page.locator('#model').selectOption(names[name as keyof typeof names] ?? name);
      await compareAll(page, name, pictures(name));
      await clear(page);
    }
    await add(page, picture('tiny', 'wide.png'), picture('tiny', 'one.png'));
    await expect(row(page, 'wide.png').locator('.state')).toContainText('left'); // some tiles are done
    await row(page, 'wide.png').getByRole('button', { name: 'Cancel' }).click();
    await expect(row(page, 'wide.png')).toHaveCount(0);
    await expect(row(page, 'one.png')).toHaveClass('done', { timeout: 150_000 });
    expect(errors).toEqual([]);
  });

  test('the page works without a network after the first visit', async () => {
    const kept = () => page.evaluate(async () => (await (await caches.open('aethernet')).keys()).length);
    await expect.poll(kept).toBeGreaterThanOrEqual(8);
    await page.evaluate(async () => {
      const cache = await caches.open('aethernet');
      await cache.put('models.json', new Response('a list of old models'));
      await cache.put('models/old.onnx', new Response('an old model'));
    });
    await page.reload();
    await expect(page.locator('#engine')).toContainText('Runs on', { timeout: 150_000 });
    expect(await page.evaluate(() => caches.match('models/old.onnx'))).toBe(undefined);
    await expect.poll(kept).toBeGreaterThanOrEqual(8);
    await page.context().setOffline(true);
    await page.reload();
    await expect(page.locator('#engine')).toContainText('Runs on', { timeout: 150_000 });
    await add(page, picture('tiny', 'one.png'));
    await expect(row(page, 'one.png')).toHaveClass('done');
  });
});

for (const kernels of ['relaxed', 'plain'])
  test(`one thread, where nothing isolates the page, with the ${kernels} kernels`, async ({ browser }) => {
    const context = await browser.newContext({ serviceWorkers: 'block' });
    const page = await context.newPage();
    const asked: string[] = [];
    page.on('request', (request) => asked.push(request.url()));
    // A browser that lacks something refuses the whole file.
    if (kernels === 'plain') await context.route(/kernels\.relaxed/, (route) => route.fulfill({ body: 'unknown' }));
    const errors = await visit(page, 'wasm', false);
    await expect(page.locator('#engine')).toContainText('Processor (1 thread)');
    await compareAll(page, 'tiny', ['odd.png', 'clear.png']);
    expect(asked.filter((url) => url.includes('kernels.')).at(-1)).toContain(`kernels.${kernels}`);
    expect(errors).toEqual([]);
    await context.close();
  });

test('the memory is laid out for these kernels', async () => {
  const folder = join(work, 'site/models');
  const name = readdirSync(folder).find((file) => file.startsWith('kernels.plain'))!;
  const memory = new WebAssembly.Memory({ initial: 1, maximum: 2 ** 14, shared: true });
  const { instance } = await WebAssembly.instantiate(readFileSync(join(folder, name)), { env: { memory } });
  const { aether_constant_page, __heap_base } = instance.exports;
  const said = [0, 1, 2, 3, 4].map((i) => (aether_constant_page as (i: number) => number)(i));
  const script = 'from aethernet.publish.page_model import CONSTANTS; print(*vars(CONSTANTS).values())';
  expect(said.join(' ')).toBe(execFileSync(python, ['-c', script], { encoding: 'utf-8' }).trim());
  expect((__heap_base as WebAssembly.Global).value).toBeLessThanOrEqual(2 ** 16);
});

test('the folder holds the licences of the libraries in the page', () => {
  const text = readFileSync(join(work, 'site/licenses.md'), 'utf-8');
  for (const name of ['birpc', 'client-zip']) expect(text).toMatch(new RegExp(`## ${name} - .*MIT[^]*Copyright`));
});

test('the graphics card makes the same pictures; when it stops, the processor goes on', async ({ page }) => {
  page.on('worker', (worker) => {
    const lend = () => {
      const original = GPUAdapter.prototype.requestDevice;
      GPUAdapter.prototype.requestDevice = async function (...words: []) {
        const device = await original.apply(this, words);
        Object.assign(self, { lent: device });
        return device;
      };
    };
    worker.evaluate(lend).catch(() => undefined); // it may have ended
  });
  const errors = await visit(page, 'webgpu');
  await expect(page.locator('#engine')).toContainText('Graphics card (google swiftshader, float32)');
  await compareAll(page, 'tiny', ['one.png', 'clear.png']);
  expect(errors).toEqual([]);
  await add(page, picture('tiny', 'gray.png'));
  await expect(row(page, 'gray.png')).toHaveClass('working');
  const stop = () => (self as unknown as { lent?: GPUDevice }).lent?.destroy();
  for (const worker of page.workers()) await worker.evaluate(stop).catch(() => undefined); // the page ends it
  await expect(page.locator('#engine')).toContainText('The graphics card stopped working.');
  await expect(page.locator('#engine')).toContainText('Processor');
  expect(await difference(page, 'tiny', 'gray.png')).toBeLessThanOrEqual(1);
});

test('a camera picture of 12 megapixels @slow', async ({ page }) => {
  test.setTimeout(1_800_000);
  await visit(page, 'wasm');
  await add(page, picture('slow', 'camera.png'));
  await expect(row(page, 'camera.png')).toHaveClass('done', { timeout: 1_500_000 });
  expect(await difference(page, 'slow', 'camera.png')).toBeLessThanOrEqual(1);
});

/** Texts whose contrast to what lies behind them is below 4.5 : 1; runs in the page. */
function lowContrast(): string[] {
  const light = (colour: string) => {
    const [r, g, b] = colour.match(/[\d.]+/g)!.map((value) => Number(value) / 255);
    const linear = (v: number) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
  };
  const behind = (element: Element): string => {
    const colour = getComputedStyle(element).backgroundColor;
    if (!colour.endsWith(', 0)')) return colour;
    return element.parentElement ? behind(element.parentElement) : colour;
  };
  const seen = [...document.querySelectorAll<HTMLElement>('body *')].filter(
    (element) =>
      element.checkVisibility() &&
      !element.matches('.tag, :disabled, .hidden, .hidden *') &&
      [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent!.trim()),
  );
  return seen.flatMap((element) => {
    const pair = [light(getComputedStyle(element).color), light(behind(element))];
    const ratio = (Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05);
    return ratio < 4.5 ? [`${element.textContent!.trim()}: ${ratio.toFixed(2)}`] : [];
  });
}
