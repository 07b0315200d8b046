// All work: it decodes a picture, runs the model tile by tile, and writes the result.
import { open, prepare, type Engine } from './engine';
import { PngWriter } from './files';
import { MOST_MEGAPIXELS, Refusal, type Ask, type Model, type Tell } from './model';
import { openPicture } from './pixels';
import { windows } from './tiles';

const tell = (message: Tell) => self.postMessage(message);
let engine: Engine;
let model: Model;

self.onmessage = async ({ data }: MessageEvent<Ask>) => {
  try {
    if (data.kind === 'load') {
      model = data.model;
      tell({ kind: 'loading', text: `Loading ${model.name} …` });
      await prepare(data.root);
      const opened = await open(data.root, model, data.device, () => tell({ kind: 'lost' }));
      engine = opened.engine;
      tell({ kind: 'loaded', engine: engine.describe, notes: opened.notes });
    } else if (data.kind === 'upscale') await upscale(data.file);
    else tell({ kind: 'encoded', picture: await encode(data.picture, data.type) });
  } catch (error) {
    const text = error instanceof Refusal ? error.message : `Something went wrong: ${error}`;
    tell({ kind: 'failed', loading: data.kind === 'load', text });
  }
};

/** As `upscale_picture` in `src/aethernet/upscaling/planes.py`, strip by strip. */
async function upscale(file: Blob): Promise<void> {
  const picture = await openPicture(file);
  const { scale } = model;
  const [width, height] = [picture.width * scale, picture.height * scale];
  tell({ kind: 'opened', width: picture.width, height: picture.height });
  if (width * height > MOST_MEGAPIXELS * 1e6) {
    picture.close();
    const size = Math.ceil((width * height) / 1e6);
    throw new Refusal(`The result would have ${size} megapixels. This page makes at most ${MOST_MEGAPIXELS}.`);
  }
  const colours = picture.gray ? 1 : 3;
  const bands = colours + (picture.alpha ? 1 : 0);
  const png = new PngWriter(width, height, bands);
  const across = windows(picture.width, engine.most);
  const down = windows(picture.height, engine.most);
  let done = 0;
  for (const row of down) {
    const rgba = await picture.rows(row.start, row.stop);
    const flat = bands > colours && rgba.every((value, i) => i % 4 < 3 || value === rgba[3]);
    const strip = new Uint8ClampedArray((row.keepStop - row.keepStart) * scale * width * bands);
    for (const column of across) {
      const [high, wide] = [row.stop - row.start, column.stop - column.start];
      const take = (band: number) => plane(rgba, band, picture.width, column.start, column.stop);
      const planes = [...Array(colours).keys()].map(take);
      if (bands > colours && !flat) planes.push(take(3));
      const results = await enlarge(planes, colours, high, wide);
      for (let y = row.keepStart * scale; y < row.keepStop * scale; y++) {
        const from = (y - row.start * scale) * wide * scale - column.start * scale;
        const to = (y - row.keepStart * scale) * width;
        for (let x = column.keepStart * scale; x < column.keepStop * scale; x++) {
          for (let b = 0; b < results.length; b++) strip[(to + x) * bands + b] = results[b][from + x] * 255;
          if (flat) strip[(to + x) * bands + colours] = rgba[3];
        }
      }
      done += (row.keepStop - row.keepStart) * (column.keepStop - column.keepStart);
      tell({ kind: 'progress', done: done / (picture.width * picture.height) });
    }
    await png.write(strip);
  }
  picture.close();
  tell({ kind: 'done', picture: await png.finish(), width, height, notes: picture.notes });
}

function plane(rgba: Uint8ClampedArray, band: number, width: number, start: number, stop: number): Float32Array {
  const wide = stop - start;
  const values = new Float32Array((rgba.length / 4 / width) * wide);
  for (let i = 0; i < values.length; i++)
    values[i] = rgba[4 * (Math.floor(i / wide) * width + start + (i % wide)) + band] / 255;
  return values;
}

/** A gray plane becomes three equal ones for a model of colours, and their mean. */
async function enlarge(planes: Float32Array[], colours: number, high: number, wide: number): Promise<Float32Array[]> {
  const results: Float32Array[] = [];
  const together = model.channels === 3 && colours === 3 ? [planes.slice(0, 3)] : planes.slice(0, colours).map((p) => [p]);
  for (const group of [...together, ...planes.slice(colours).map((p) => [p])]) {
    const alone = group.length < model.channels;
    const upscaled = await engine.run(alone ? Array(model.channels).fill(group[0]) : group, high, wide);
    if (alone) results.push(upscaled[0].map((value, i) => (value + upscaled[1][i] + upscaled[2][i]) / 3));
    else results.push(...upscaled);
  }
  if (results.some((values) => !values.every(Number.isFinite)))
    throw new Refusal('The model returned values that are no numbers. Choose the processor under “Runs on”.');
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
  const result = await canvas.convertToBlob({ type, quality: 0.92 });
  if (result.type !== type) throw new Refusal('This browser cannot write this format.');
  return result;
}
