// The page gives the pictures that the command gives, on the processor and on the
// graphics card. Models and expected pictures: `serve.py`.
import { execFileSync } from 'node:child_process';
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, test, type Locator, type Page } from '@playwright/test';
import { python, work } from '../playwright.config';

const pictures = (model: string) => readdirSync(join(work, 'pictures', model));
const picture = (...names: string[]) => join(work, 'pictures', ...names);

/** A visitor's page that has loaded a model, and the errors that it had. */
async function visit(page: Page, device: string, model = 'tiny'): Promise<string[]> {
  const errors: string[] = [];
  page.on('pageerror', (error) => errors.push(error.message));
  page.on('console', (line) => line.type() === 'error' && errors.push(line.text()));
  page.on('request', (request) => {
    const { protocol, hostname } = new URL(request.url());
    if (protocol !== 'blob:' && hostname !== '127.0.0.1') errors.push(request.url());
  });
  await page.goto('./');
  await page.waitForFunction(() => crossOriginIsolated);
  await page.locator('#device').selectOption(device);
  const option = page.locator('#model option', { hasText: model });
  await page.locator('#model').selectOption((await option.getAttribute('value'))!);
  await expect(page.locator('#engine')).toContainText('Runs on', { timeout: 100_000 });
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
  await expect(item).toHaveClass('done', { timeout: 100_000 });
  const got = await saved(page, item.locator('.save'), `${model}-${name}.png`);
  const expected = join(work, 'expected', model, name.replace(/\.\w+$/, '.png'));
  return Number(execFileSync(python, ['tests/compare.py', got, expected]));
}

async function compareAll(page: Page, model: string, names: string[]): Promise<void> {
  await add(page, ...names.map((name) => picture(model, name)));
  for (const name of names) expect.soft(await difference(page, model, name), name).toBeLessThanOrEqual(1);
}

test('the processor makes every kind of picture as the command does', async ({ page }) => {
  const errors = await visit(page, 'wasm');
  await expect(page.locator('#engine')).toContainText(/Processor \(\d+ threads?\)/);
  const names = pictures('tiny');
  expect(names.length).toBeGreaterThan(7);
  await compareAll(page, 'tiny', names);
  for (const model of ['gray4', 'aether_small']) {
    await page.locator('#model').selectOption({ index: model === 'gray4' ? 2 : 1 });
    const folder = model === 'gray4' ? model : 'shipped';
    while (await page.locator('.stop').count()) await page.locator('.stop').first().click();
    await compareAll(page, folder, pictures(folder));
  }
  expect(errors).toEqual([]);
});

test('the graphics card makes pictures as the command does', async ({ page }) => {
  const errors = await visit(page, 'webgpu');
  await expect(page.locator('#engine')).toContainText('Graphics card (google swiftshader, float32)');
  await compareAll(page, 'tiny', ['one.png', 'odd.png', 'clear.png', 'turned.jpg']);
  expect(errors).toEqual([]);
});

test('a card that stops is replaced by the processor', async ({ page }) => {
  await visit(page, 'wasm');
  await page.locator('#model').selectOption({ index: 2 });
  page.on('worker', (next) => {
    void next.evaluate(() => {
      const original = GPUAdapter.prototype.requestDevice;
      GPUAdapter.prototype.requestDevice = async function (...words: []) {
        const device = await original.apply(this, words);
        Object.assign(self, { lent: device });
        return device;
      };
    }).catch(() => undefined);
  });
  await page.locator('#device').selectOption('webgpu');
  await expect(page.locator('#engine')).toContainText('Graphics card');
  await add(page, picture('gray4', 'odd.png'));
  for (const each of page.workers())
    await each.evaluate(() => (self as unknown as { lent?: { destroy(): void } }).lent?.destroy()).catch(() => undefined);
  await expect(page.locator('#engine')).toContainText('The graphics card stopped working.', { timeout: 60_000 });
  await expect(page.locator('#engine')).toContainText('Processor');
  expect(await difference(page, 'gray4', 'odd.png')).toBeLessThanOrEqual(1);
});

test('what cannot be done is said, and the rest goes on', async ({ page }) => {
  await visit(page, 'wasm');
  await add(page, join(work, 'pictures/damaged.png'), join(work, 'pictures/large.png'), picture('tiny', 'one.png'));
  await expect(row(page, 'damaged.png').locator('.state')).toHaveText(
    'This browser cannot read it: it is damaged, or no picture.',
  );
  await expect(row(page, 'large.png').locator('.state')).toHaveText(
    'The result would have 120 megapixels. This page makes at most 100.',
  );
  await expect(row(page, 'one.png')).toHaveClass('done');
});

test('a picture is cancelled while it is enlarged, and the next one is done', async ({ page }) => {
  await visit(page, 'wasm', 'aether_small');
  await add(page, picture('tiny', 'sample.png'), picture('tiny', 'one.png'));
  await expect(row(page, 'sample.png')).toHaveClass('working');
  await row(page, 'sample.png').getByRole('button', { name: 'Cancel' }).click();
  await expect(row(page, 'sample.png')).toHaveCount(0);
  await expect(row(page, 'one.png')).toHaveClass('done', { timeout: 60_000 });
});

test('results are saved in every format, and together', async ({ page }) => {
  await visit(page, 'wasm');
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

test('the page works without a network after the first visit', async ({ page, context }) => {
  await visit(page, 'wasm');
  await expect
    .poll(() => page.evaluate(async () => (await (await caches.open('aethernet')).keys()).length))
    .toBeGreaterThanOrEqual(9);
  await context.setOffline(true);
  await page.reload();
  await expect(page.locator('#engine')).toContainText('Runs on', { timeout: 60_000 });
  await add(page, picture('tiny', 'one.png'));
  await expect(row(page, 'one.png')).toHaveClass('done');
});

test('it can be used with the keyboard, at every width', async ({ page }) => {
  await visit(page, 'wasm');
  await add(page, picture('tiny', 'sample.png'));
  await expect(row(page, 'sample.png')).toHaveClass('done');
  await page.locator('#split').focus();
  await page.keyboard.press('Home');
  await expect(page.locator('.before')).toHaveCSS('clip-path', /inset\(0px calc\(100% (\+ \d|- 0)/);
  await page.getByRole('button', { name: '1:1' }).focus();
  await page.keyboard.press('Enter');
  await expect(page.locator('.after')).toHaveJSProperty('clientWidth', 512);
  for (const width of [390, 768, 1280]) {
    await page.setViewportSize({ width, height: 800 });
    expect(await page.evaluate(() => document.documentElement.scrollWidth)).toBeLessThanOrEqual(width);
  }
});

test('a camera picture of 12 megapixels @slow', async ({ page }) => {
  test.setTimeout(1_800_000);
  await visit(page, 'wasm');
  await add(page, picture('slow', 'camera.png'));
  await expect(row(page, 'camera.png')).toHaveClass('done', { timeout: 1_500_000 });
  expect(await difference(page, 'slow', 'camera.png')).toBeLessThanOrEqual(1);
});
