// The tests of the page, in Chromium: the system's, or that of `npx playwright install chromium`.
import { existsSync } from 'node:fs';
import { defineConfig } from '@playwright/test';

const port = Number(process.env.PORT ?? 4179);
const clone = '../.venv/bin/python';
export const python = process.env.PYTHON ?? (existsSync(clone) ? clone : 'python3');
export const work = '.work';

const chromium = '/usr/bin/chromium';
const args = ['--enable-unsafe-webgpu', '--use-webgpu-adapter=swiftshader', '--enable-unsafe-swiftshader'];

export default defineConfig({
  testDir: 'tests',
  outputDir: '.work/results',
  workers: 1,
  timeout: 400_000, // of busy machines
  expect: { timeout: 60_000 },
  grepInvert: process.env.SLOW ? undefined : /@slow/,
  reporter: 'list',
  use: {
    baseURL: `http://127.0.0.1:${port}/`,
    launchOptions: { executablePath: existsSync(chromium) ? chromium : undefined, args },
  },
  webServer: {
    command: `${python} tests/serve.py ${port} ${work}`,
    port,
    timeout: 120_000,
    stdout: 'ignore',
    reuseExistingServer: !process.env.CI,
  },
});
