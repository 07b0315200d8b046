// Files that are written piece by piece: PNG, and a zip of finished files.

const TABLE = Uint32Array.from({ length: 256 }, (_, n) => {
  for (let k = 0; k < 8; k++) n = n & 1 ? (n >>> 1) ^ 0xedb88320 : n >>> 1;
  return n;
});

function crc32(...parts: Uint8Array[]): number {
  let crc = ~0;
  for (const part of parts)
    for (let i = 0; i < part.length; i++) crc = (crc >>> 8) ^ TABLE[(crc ^ part[i]) & 255];
  return ~crc >>> 0;
}

type Bytes = Uint8Array<ArrayBuffer>;

/** Numbers as bytes: pairs of a value and its length. */
function bytes(little: boolean, ...fields: [number, number][]): Bytes {
  const shift = (i: number, size: number) => 8 * (little ? i : size - 1 - i);
  return Uint8Array.from(
    fields.flatMap(([value, size]) => Array.from({ length: size }, (_, i) => (value >>> shift(i, size)) & 255)),
  );
}

/** A PNG in sRGB, of which only compressed rows are held. */
export class PngWriter {
  private readonly packer = new CompressionStream('deflate');
  private readonly writer = this.packer.writable.getWriter();
  private readonly parts: Bytes[] = [];
  private readonly packed = new Response(this.packer.readable).arrayBuffer();
  private before: Uint8Array;

  /** `bands`: 1 gray, 2 with alpha, 3 RGB, 4 with alpha. */
  constructor(private readonly width: number, height: number, private readonly bands: number) {
    this.before = new Uint8Array(width * bands);
    this.parts.push(Uint8Array.of(0x89, 0x50, 0x4e, 0x47, 13, 10, 26, 10));
    const kind = [0, 0, 4, 2, 6][bands];
    this.chunk('IHDR', bytes(false, [width, 4], [height, 4], [8, 1], [kind, 1], [0, 1], [0, 1], [0, 1]));
    this.chunk('sRGB', Uint8Array.of(0));
  }

  private chunk(name: string, data: Bytes): void {
    const type = Uint8Array.from(name, (c) => c.charCodeAt(0));
    this.parts.push(bytes(false, [data.length, 4]), type, data, bytes(false, [crc32(type, data), 4]));
  }

  /** Append rows of `width * bands` bytes. */
  async write(rows: Uint8ClampedArray): Promise<void> {
    const [length, bands] = [this.width * this.bands, this.bands];
    const count = rows.length / length;
    const filtered = new Uint8Array(count * (length + 1));
    for (let y = 0; y < count; y++) {
      const row = rows.subarray(y * length, (y + 1) * length);
      const [to, up] = [y * (length + 1) + 1, this.before];
      filtered[to - 1] = 4; // Paeth's prediction
      for (let i = 0; i < length; i++) {
        const a = i < bands ? 0 : row[i - bands];
        const c = i < bands ? 0 : up[i - bands];
        const [da, db, dc] = [Math.abs(up[i] - c), Math.abs(a - c), Math.abs(a + up[i] - 2 * c)];
        filtered[to + i] = row[i] - (da <= db && da <= dc ? a : db <= dc ? up[i] : c);
      }
      this.before = new Uint8Array(row);
    }
    await this.writer.write(filtered);
  }

  async finish(): Promise<Blob> {
    await this.writer.close();
    this.chunk('IDAT', new Uint8Array(await this.packed));
    this.chunk('IEND', new Uint8Array(0));
    return new Blob(this.parts, { type: 'image/png' });
  }
}

/** A zip of files that are compressed already. */
export async function zip(files: [string, Blob][]): Promise<Blob> {
  const [parts, list]: [BlobPart[], BlobPart[]] = [[], []];
  let [at, listed] = [0, 0];
  for (const [name, file] of files) {
    const title = new TextEncoder().encode(name);
    const sum = crc32(new Uint8Array(await file.arrayBuffer()));
    // Version 2.0, names in UTF-8, stored, 1980-01-01.
    const sizes: [number, number][] = [[sum, 4], [file.size, 4], [file.size, 4], [title.length, 2], [0, 2]];
    const facts: [number, number][] = [[20, 2], [0x800, 2], [0, 2], [0, 2], [33, 2], ...sizes];
    const entry = bytes(true, [0x02014b50, 4], [20, 2], ...facts, [0, 2], [0, 2], [0, 2], [0, 4], [at, 4]);
    parts.push(bytes(true, [0x04034b50, 4], ...facts), title, file);
    list.push(entry, title);
    at += 30 + title.length + file.size;
    listed += entry.length + title.length;
  }
  const count: [number, number] = [files.length, 2];
  const end = bytes(true, [0x06054b50, 4], [0, 2], [0, 2], count, count, [listed, 4], [at, 4], [0, 2]);
  return new Blob([...parts, ...list, end], { type: 'application/zip' });
}
