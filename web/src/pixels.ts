// Pictures as pixels: decoded by the browser, read in strips.
import { refusal } from './model';

/** RGBA of rows `start` to `stop`; colours are not multiplied by alpha. */
type Rows = (start: number, stop: number) => Promise<Uint8ClampedArray<ArrayBuffer>>;

const STRIP = 2 ** 22; // pixels that are looked at together
const MOST = 100; // megapixels of a result

/**
 * Decode a picture that a model makes `scale` times as large: upright, in sRGB, 8 bits.
 * `alpha` and `gray`: whether a pixel is transparent, and whether every one is gray.
 */
export async function openPicture(file: Blob, scale: number) {
  const bitmap = await createImageBitmap(file).catch(() => {
    throw refusal('This browser cannot read it: it is damaged, or no picture.');
  });
  const { width, height } = bitmap;
  const size = Math.ceil((width * height * scale ** 2) / 1e6);
  if (size > MOST) throw refusal(`The result would have ${size} megapixels. This page makes at most ${MOST}.`);
  const rows: Rows = async (start, stop) => {
    const context = new OffscreenCanvas(width, stop - start).getContext('2d', { willReadFrequently: true })!;
    context.drawImage(bitmap, 0, -start);
    return context.getImageData(0, 0, width, stop - start).data as Uint8ClampedArray<ArrayBuffer>;
  };
  let [alpha, gray] = [false, true];
  const step = Math.max(Math.floor(STRIP / width), 1);
  for (let start = 0; start < height; start += step) {
    const data = await rows(start, Math.min(start + step, height));
    for (let i = 0; i < data.length; i += 4) {
      if (data[i] !== data[i + 1] || data[i] !== data[i + 2]) gray = false;
      if (data[i + 3] !== 255) alpha = true;
    }
  }
  const exact = alpha ? await unmultiplied(file, width) : rows;
  const notes = exact ? [] : ['Colours of nearly transparent pixels are rounded: this browser has no WebGL'];
  return { width, height, alpha, gray, notes, rows: alpha ? spread(exact ?? rows, height, width) : rows };
}

/** Exact colours of transparent pixels. A 2D canvas rounds them, WebGL does not. */
async function unmultiplied(file: Blob, width: number): Promise<Rows | null> {
  const gl = new OffscreenCanvas(1, 1).getContext('webgl');
  const options = { premultiplyAlpha: 'none' } as const;
  const bitmap = await createImageBitmap(file, options);
  if (!gl || width > gl.getParameter(gl.MAX_TEXTURE_SIZE)) return null;
  const texture = gl.createTexture();
  gl.bindTexture(gl.TEXTURE_2D, texture);
  gl.bindFramebuffer(gl.FRAMEBUFFER, gl.createFramebuffer());
  return async (start, stop) => {
    const part = await createImageBitmap(bitmap, 0, start, width, stop - start, options);
    gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA, gl.RGBA, gl.UNSIGNED_BYTE, part);
    gl.framebufferTexture2D(gl.FRAMEBUFFER, gl.COLOR_ATTACHMENT0, gl.TEXTURE_2D, texture, 0);
    const data = new Uint8Array(4 * width * (stop - start));
    gl.readPixels(0, 0, width, stop - start, gl.RGBA, gl.UNSIGNED_BYTE, data);
    return new Uint8ClampedArray(data.buffer);
  };
}

// How far colours spread under transparency, as in `src/aethernet/pictures/files.py`.
const REACH = 14;
const BELL = Array.from({ length: 2 * REACH + 1 }, (_, i) => Math.exp(-((i - REACH) ** 2) / 72));
const BLUR = BELL.map((weight) => weight / BELL.reduce((sum, each) => sum + each));

/** Blur along one axis, whose `length` values lie `step` apart. */
function blur(values: Float32Array, step: number, length: number): Float32Array {
  const inside = (at: number) => Math.min(Math.max(at, 0), length - 1);
  return values.map((_, i) => {
    const at = Math.floor(i / step) % length;
    return BLUR.reduce((sum, weight, k) => sum + weight * values[i + (inside(at + k - REACH) - at) * step], 0);
  });
}

/** Pixels of alpha 0 get the mean of the visible colours around them. */
function spread(rows: Rows, height: number, width: number): Rows {
  return async (start, stop) => {
    const first = Math.max(start - REACH, 0);
    const data = await rows(first, Math.min(stop + REACH, height));
    // Colours times alpha, and alpha; `i | 3` is the place of a pixel's alpha.
    const weighted = new Float32Array(data).map((value, i) => (i % 4 < 3 ? value * data[i | 3] : value));
    const sums = blur(blur(weighted, 4 * width, data.length / 4 / width), 4, width);
    for (let i = 0; i < data.length; i++)
      if (!data[i | 3] && i % 4 < 3 && sums[i | 3] > 1e-3) data[i] = sums[i] / (sums[i | 3] + 1e-6);
    return data.subarray((start - first) * width * 4, (stop - first) * width * 4);
  };
}
