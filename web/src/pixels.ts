// Pictures as pixels: decoded by the browser, read in strips.
import { Refusal } from './model';

/** RGBA of rows `start` to `stop`; colours are not multiplied by alpha. */
type Rows = (start: number, stop: number) => Promise<Uint8ClampedArray<ArrayBuffer>>;

export interface Picture {
  width: number;
  height: number;
  /** Whether a pixel is transparent, and whether every one is gray. */
  alpha: boolean;
  gray: boolean;
  notes: string[];
  rows: Rows;
}

const STRIP = 2 ** 22; // pixels that are looked at together

/** Decode a picture: upright, in sRGB, 8 bits. `isFine` refuses sizes. */
export async function openPicture(file: Blob, isFine: (width: number, height: number) => void): Promise<Picture> {
  const bitmap = await createImageBitmap(file).catch(() => {
    throw new Refusal('This browser cannot read it: it is damaged, or no picture.');
  });
  const { width, height } = bitmap;
  isFine(width, height);
  const context = new OffscreenCanvas(1, 1).getContext('2d', { willReadFrequently: true })!;
  const rows: Rows = async (start, stop) => {
    Object.assign(context.canvas, { width, height: stop - start }); // this empties it, too
    context.drawImage(bitmap, 0, -start);
    return context.getImageData(0, 0, width, stop - start).data as Uint8ClampedArray<ArrayBuffer>;
  };
  const picture: Picture = { width, height, alpha: false, gray: true, notes: [], rows };
  const step = Math.max(Math.floor(STRIP / width), 1);
  for (let start = 0; start < height; start += step) {
    const data = await rows(start, Math.min(start + step, height));
    for (let i = 0; i < data.length; i += 4) {
      if (data[i] !== data[i + 1] || data[i] !== data[i + 2]) picture.gray = false;
      if (data[i + 3] !== 255) picture.alpha = true;
    }
  }
  if (!picture.alpha) return picture;
  const exact = await unmultiplied(file);
  if (!exact) picture.notes.push('Colours of nearly transparent pixels are rounded: this browser has no WebGL');
  return { ...picture, rows: spread(exact ?? rows, height, width) };
}

/** Exact colours of transparent pixels. A 2D canvas rounds them, WebGL does not. */
async function unmultiplied(file: Blob): Promise<Rows | null> {
  const gl = new OffscreenCanvas(1, 1).getContext('webgl');
  const options = { premultiplyAlpha: 'none' } as const;
  const bitmap = await createImageBitmap(file, options);
  const { width } = bitmap;
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

/** Pixels of alpha 0 get the mean of the visible colours around them. */
function spread(rows: Rows, height: number, width: number): Rows {
  const inside = (at: number, length: number) => Math.min(Math.max(at, 0), length - 1);
  return async (start, stop) => {
    const first = Math.max(start - REACH, 0);
    const around = await rows(first, Math.min(stop + REACH, height));
    const data = around.slice((start - first) * width * 4, (stop - first) * width * 4);
    // Weighted colours and weights, blurred along columns, for the rows that are wanted.
    const blurred = new Float32Array(data.length);
    BLUR.forEach((weight, k) => {
      for (let y = start; y < stop; y++) {
        const from = (inside(y + k - REACH, height) - first) * width * 4;
        const to = (y - start) * width * 4;
        for (let i = 0; i < 4 * width; i += 4) {
          const visible = weight * around[from + i + 3];
          for (let c = 0; c < 3; c++) blurred[to + i + c] += visible * around[from + i + c];
          blurred[to + i + 3] += visible;
        }
      }
    });
    for (let i = 0; i < data.length / 4; i++) {
      if (data[4 * i + 3]) continue;
      const sums = [0, 0, 0, 0];
      BLUR.forEach((weight, k) => {
        const from = 4 * (i - (i % width) + inside((i % width) + k - REACH, width));
        for (let c = 0; c < 4; c++) sums[c] += weight * blurred[from + c];
      });
      if (sums[3] > 1e-3) for (let c = 0; c < 3; c++) data[4 * i + c] = sums[c] / (sums[3] + 1e-6);
    }
    return data;
  };
}
