// All work: it decodes a picture, runs the model tile by tile, and writes the result.
import { connect } from './calls';
import { open, type Engine } from './engine';
import type { Page } from './main';
import { refusal, type Device, type Model } from './model';
import { openPicture } from './pixels';
import { PngWriter } from './png';
import { help } from './processor';
import { windows } from './tiles';

let engine: Engine;

/** What the page and other workers may call. */
const work = { load, upscale, encode, help };
export type Work = typeof work;
const page = connect<Page>(self, work);

/** Open a model. Returns what computes it, and what went wrong before. */
async function load(root: string, model: Model, device: Device): Promise<string[]> {
  engine = await open(root, model, device, () => page.lost());
  return [engine.describe, ...engine.notes];
}

/** As `upscale_picture` in `src/aethernet/upscaling/planes.py`, strip by strip. */
async function upscale(file: Blob) {
  const { scale } = engine.model;
  const picture = await openPicture(file, scale);
  const [width, height] = [picture.width * scale, picture.height * scale];
  const colours = picture.gray ? [0] : [0, 1, 2];
  const bands = picture.alpha ? [...colours, 3] : colours;
  const png = new PngWriter(width, height, bands.length);
  for (const row of windows(picture.height, engine.most)) {
    const rgba = await picture.rows(row.start, row.stop);
    const flat = picture.alpha && rgba.every((value, i) => i % 4 < 3 || value === rgba[3]);
    const rows = row.keepStop - row.keepStart;
    const strip = new Uint8ClampedArray(rows * scale * width * bands.length);
    if (flat) strip.fill(rgba[3]);
    for (const column of windows(picture.width, engine.most)) {
      const [high, wide] = [row.stop - row.start, column.stop - column.start];
      const at = (i: number) => 4 * (Math.floor(i / wide) * picture.width + column.start + (i % wide));
      const value = (band: number, i: number) => rgba[at(i) + band] / 255;
      const results = await enlarge(flat ? colours : bands, value, high, wide);
      for (let y = row.keepStart * scale; y < row.keepStop * scale; y++) {
        const from = (y - row.start * scale) * wide * scale - column.start * scale;
        const to = (y - row.keepStart * scale) * width;
        for (let x = column.keepStart * scale; x < column.keepStop * scale; x++)
          for (let b = 0; b < results.length; b++) strip[(to + x) * bands.length + b] = results[b][from + x] * 255;
      }
      void page.progress.asEvent((row.keepStart + (rows * column.keepStop) / picture.width) / picture.height);
    }
    await png.write(strip);
  }
  return { picture: await png.finish(), width, height, scale, notes: picture.notes };
}

/** Bands, high x wide. A model of colours takes one that is left three times: the result is the mean. */
async function enlarge(bands: number[], value: (band: number, i: number) => number, high: number, wide: number) {
  const { channels, scale } = engine.model;
  const results: Float32Array[] = [];
  const left = [...bands];
  while (left.length) {
    const alone = left.length < channels;
    const group = alone ? Array<number>(channels).fill(left.shift()!) : left.splice(0, channels);
    const size = high * wide;
    const input = new Float32Array(channels * size).map((_, i) => value(group[Math.floor(i / size)], i % size));
    const output = await engine.compute(input, high, wide);
    if (!output.every(Number.isFinite))
      throw refusal('The model returned values that are no numbers. Choose the processor under “Runs on”.');
    const planes = group.map((_, c) => output.subarray(c * size * scale ** 2, (c + 1) * size * scale ** 2));
    const [first, second, third] = planes;
    if (alone) results.push(first.map((value, i) => (value + second[i] + third[i]) / 3));
    else results.push(...planes);
  }
  return results;
}

/** A picture in another format. JPEG has no transparency: white takes its place. */
async function encode(picture: Blob, type: string): Promise<Blob> {
  const bitmap = await createImageBitmap(picture);
  const canvas = new OffscreenCanvas(bitmap.width, bitmap.height);
  const context = canvas.getContext('2d')!;
  context.fillStyle = 'white';
  if (type === 'image/jpeg') context.fillRect(0, 0, bitmap.width, bitmap.height);
  context.drawImage(bitmap, 0, 0);
  const result = await canvas.convertToBlob({ type, quality: 0.92 }).catch(() => null);
  if (result?.type !== type) throw refusal('This browser cannot save it in this format. Save it as PNG.');
  return result;
}
