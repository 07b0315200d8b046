// All work: it decodes a picture, runs the model tile by tile, and writes the result.
import { open, type Engine } from './engine';
import { PngWriter } from './files';
import { MOST_MEGAPIXELS, Refusal, type Ask, type Model, type Tell } from './model';
import { openPicture } from './pixels';
import { help } from './processor';
import { windows } from './tiles';

const tell = (message: Tell) => self.postMessage(message);
let engine: Engine;
let model: Model;

self.onmessage = async ({ data }: MessageEvent<Ask>) => {
  try {
    if (data.kind === 'load') {
      model = data.model;
      tell({ kind: 'loading', text: `Loading ${model.name} …` });
      const [opened, notes] = await open(data.root, model, data.device, () => tell({ kind: 'lost' }));
      engine = opened;
      tell({ kind: 'loaded', engine: engine.describe, notes });
    } else if (data.kind === 'help') await help(data.share, () => tell({ kind: 'ready' }));
    else if (data.kind === 'upscale') await upscale(data.file);
    else tell({ kind: 'encoded', picture: await encode(data.picture, data.type) });
  } catch (error) {
    // A card that stops fails the picture first; the page tries it again on the processor.
    const isLost = data.kind === 'upscale' && !(error instanceof Refusal) && engine.describe.startsWith('Graphics');
    if (isLost) return tell({ kind: 'lost' });
    const text = error instanceof Refusal ? error.message : `Something went wrong: ${error}`;
    tell({ kind: data.kind === 'load' ? 'loading' : 'failed', text });
  }
};

/** As `upscale_picture` in `src/aethernet/upscaling/planes.py`, strip by strip. */
async function upscale(file: Blob): Promise<void> {
  const { scale } = model;
  const picture = await openPicture(file, (width, height) => {
    const size = Math.ceil((width * height * scale ** 2) / 1e6);
    if (size > MOST_MEGAPIXELS)
      throw new Refusal(`The result would have ${size} megapixels. This page makes at most ${MOST_MEGAPIXELS}.`);
  });
  const [width, height] = [picture.width * scale, picture.height * scale];
  const colours = picture.gray ? 1 : 3;
  const bands = colours + (picture.alpha ? 1 : 0);
  const png = new PngWriter(width, height, bands);
  let done = 0;
  for (const row of windows(picture.height, engine.most)) {
    const rgba = await picture.rows(row.start, row.stop);
    const flat = picture.alpha && rgba.every((value, i) => i % 4 < 3 || value === rgba[3]);
    const strip = new Uint8ClampedArray((row.keepStop - row.keepStart) * scale * width * bands);
    if (flat) strip.fill(rgba[3]);
    for (const column of windows(picture.width, engine.most)) {
      const [high, wide] = [row.stop - row.start, column.stop - column.start];
      const results: Float32Array[] = [];
      for (const group of [...(colours === 3 ? [[0, 1, 2]] : [[0]]), ...(picture.alpha && !flat ? [[3]] : [])]) {
        const planes = group.map((band) => plane(rgba, band, picture.width, column.start, wide));
        results.push(...(await enlarge(planes, high, wide)));
      }
      for (let y = row.keepStart * scale; y < row.keepStop * scale; y++) {
        const from = (y - row.start * scale) * wide * scale - column.start * scale;
        const to = (y - row.keepStart * scale) * width;
        for (let x = column.keepStart * scale; x < column.keepStop * scale; x++)
          for (let b = 0; b < results.length; b++) strip[(to + x) * bands + b] = results[b][from + x] * 255;
      }
      done += (row.keepStop - row.keepStart) * (column.keepStop - column.keepStart);
      tell({ kind: 'progress', done: done / (picture.width * picture.height) });
    }
    await png.write(strip);
  }
  tell({ kind: 'done', picture: await png.finish(), width, height, notes: picture.notes });
}

function plane(rgba: Uint8ClampedArray, band: number, width: number, start: number, wide: number): Float32Array {
  const at = (i: number) => 4 * (Math.floor(i / wide) * width + start + (i % wide)) + band;
  return new Float32Array((rgba.length / 4 / width) * wide).map((_, i) => rgba[at(i)] / 255);
}

/** One plane becomes three equal ones for a model of colours, and their mean. */
async function enlarge(planes: Float32Array[], high: number, wide: number): Promise<Float32Array[]> {
  const alone = planes.length < model.channels;
  const upscaled = await engine.run(alone ? Array(model.channels).fill(planes[0]) : planes, high, wide);
  if (!upscaled.every((values) => values.every(Number.isFinite)))
    throw new Refusal('The model returned values that are no numbers. Choose the processor under “Runs on”.');
  const [first, second, third] = upscaled;
  return alone ? [first.map((value, i) => (value + second[i] + third[i]) / 3)] : upscaled;
}

/** A picture in another format. JPEG has no transparency: white takes its place. */
async function encode(picture: Blob, type: string): Promise<Blob> {
  const bitmap = await createImageBitmap(picture);
  const canvas = new OffscreenCanvas(bitmap.width, bitmap.height);
  const context = canvas.getContext('2d')!;
  context.fillStyle = 'white';
  if (type === 'image/jpeg') context.fillRect(0, 0, bitmap.width, bitmap.height);
  context.drawImage(bitmap, 0, 0);
  const result = await canvas.convertToBlob({ type, quality: 0.92 });
  if (result.type !== type) throw new Refusal('This browser cannot write this format.');
  return result;
}
