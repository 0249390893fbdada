// The codec in a browser: streams to latents and back, bit for bit those of the Python package; docs/bitstream.md has
// the format. h_s and the context run in onnxruntime on integers in float64, which is exact in any runtime.

const MAGIC = 0xae, VERSION = 1, LARGEST_SIDE = 8192, DIAL = 255, LARGEST = 2 ** 15;
const MEDIAN_STEPS = 64, MEAN_STEPS = 256;
const PRECISION = 24n, WORD = 32n, STATE = (1n << 64n) - 1n, HALF = 1n << 32n;

export class CodecError extends Error {}

// Round half to even, as IEEE 754 and numpy do.
export function rint(x) {
  const low = Math.floor(x), rest = x - low;
  return rest < 0.5 ? low : rest > 0.5 ? low + 1 : low % 2 ? low + 1 : low;
}
const clamp = (x) => Math.max(-LARGEST, Math.min(LARGEST, x));

// ---------------------------------------------------------------------- range coding

// A table: cumulative counts out of 2^24 of the symbols low, low + 1, ... and of the escape.
export function makeTable({ low, counts }) {
  const sums = new Uint32Array(counts.length + 1);
  counts.forEach((count, i) => (sums[i + 1] = sums[i] + count));
  return { low, escape: counts.length - 1, sums };
}

export function uniform(size) {
  const each = Math.floor(2 ** 24 / size), sums = new Uint32Array(size + 1);
  for (let i = 0; i < size; i++) sums[i] = i * each;
  sums[size] = 2 ** 24;
  return { sums };
}
const uniforms = new Map();
const uniformOf = (size) => uniforms.get(size) ?? (uniforms.set(size, uniform(size)), uniforms.get(size));

export class Encoder {
  constructor() {
    this.words = [];
    this.lower = 0n;
    this.range = STATE;
    this.empty = true;
  }

  encode(symbol, { sums }) {
    this.empty = false;
    const scale = this.range >> PRECISION;
    this.range = scale * BigInt(sums[symbol + 1] - sums[symbol]);
    this.lower += scale * BigInt(sums[symbol]);
    if (this.lower > STATE) {
      this.lower &= STATE;
      let i = this.words.length - 1;
      while (this.words[i] === 0xffffffff) this.words[i--] = 0;
      this.words[i]++;
    }
    if (this.range < HALF) {
      this.words.push(Number(this.lower >> WORD));
      this.lower = (this.lower << WORD) & STATE;
      this.range <<= WORD;
    }
  }

  // The shortest bytes that, with zeros behind, are a number of the final interval.
  bytes() {
    if (this.empty) return new Uint8Array(0);
    const words = [...this.words.map(BigInt), this.lower >> WORD, this.lower & (HALF - 1n)];
    // The number may carry into the words before: all of it as one.
    const start = BigInt("0x" + words.map((word) => word.toString(16).padStart(8, "0")).join(""));
    for (let zeros = 8n; ; zeros--) {
      const step = 1n << (8n * zeros), value = (start + step - 1n) / step;
      const length = 4 * words.length - Number(zeros);
      if (value * step < start + this.range && value < 1n << BigInt(8 * length)) {
        const text = value.toString(16).padStart(2 * length, "0");
        const bytes = Uint8Array.from({ length }, (_, i) => parseInt(text.slice(2 * i, 2 * i + 2), 16));
        let end = length;
        while (end && !bytes[end - 1]) end--;
        return bytes.slice(0, end);
      }
    }
  }
}

export class Decoder {
  constructor(bytes) {
    this.padded = new Uint8Array(bytes.length + 16);
    this.padded.set(bytes);
    this.at = 0;
    this.point = (this.word() << WORD) | this.word(); // less the lower end of the interval
    this.range = STATE;
  }

  word() {
    const [a, b, c, d] = this.padded.slice(this.at, this.at + 4);
    this.at += 4;
    return a === undefined || d === undefined ? 0n : BigInt(a * 2 ** 24 + b * 2 ** 16 + c * 2 ** 8 + d);
  }

  decode({ sums }) {
    const scale = this.range >> PRECISION, place = this.point / scale;
    if (place >= 1n << PRECISION) throw new CodecError("the bytes fit no symbols");
    const quantile = Number(place);
    let low = 0, high = sums.length - 1;
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (sums[middle] <= quantile) low = middle;
      else high = middle;
    }
    this.point -= scale * BigInt(sums[low]);
    this.range = scale * BigInt(sums[low + 1] - sums[low]);
    if (this.range < HALF) {
      this.point = ((this.point << WORD) & STATE) | this.word();
      this.range <<= WORD;
    }
    return low;
  }
}

// Positions by table: in rising order of the tables, and of the positions.
function groups(numbers) {
  const found = new Map();
  numbers.forEach((number, i) => (found.get(number) ?? (found.set(number, []), found.get(number))).push(i));
  return [...found].sort((a, b) => a[0] - b[0]);
}

// Parts of [0, 1, ...], where `where` are positions in channels of this height and width: one part for each band of so
// many rows, or all as one for null.
function inBands(where, [height, width], rows) {
  const all = Array.from(where, (_, i) => i);
  return rows === null ? [all] : groups(all.map((i) => Math.floor((Math.floor(where[i] / width) % height) / rows))).map(([, part]) => part);
}

export function writeSymbols(encoder, values, numbers, tables) {
  const outside = [];
  for (const [number, where] of groups(numbers)) {
    const table = tables[number], last = table.low + table.escape - 1;
    for (const i of where) {
      const index = values[i] - table.low, escapes = index < 0 || index >= table.escape;
      encoder.encode(escapes ? table.escape : index, table);
      if (escapes) outside.push(values[i] < table.low ? [table.low - values[i], 1] : [values[i] - last, 0]);
    }
  }
  const lengths = outside.map(([distance]) => 31 - Math.clz32(distance));
  lengths.forEach((length) => encoder.encode(length, uniformOf(17)));
  outside.forEach(([, negative]) => encoder.encode(negative, uniformOf(2)));
  outside.forEach(([distance], i) => lengths[i] && encoder.encode(distance - 2 ** lengths[i], uniformOf(2 ** lengths[i])));
}

export function readSymbols(decoder, numbers, tables) {
  const values = new Int32Array(numbers.length), outside = [];
  for (const [number, where] of groups(numbers)) {
    const table = tables[number];
    for (const i of where) {
      const index = decoder.decode(table);
      values[i] = table.low + index;
      if (index === table.escape) outside.push([i, table]);
    }
  }
  const lengths = outside.map(() => decoder.decode(uniformOf(17)));
  const negative = outside.map(() => decoder.decode(uniformOf(2)));
  outside.forEach(([i, table], k) => {
    const size = 2 ** lengths[k], distance = lengths[k] ? size + decoder.decode(uniformOf(size)) : 1;
    values[i] = negative[k] ? table.low - distance : table.low + table.escape - 1 + distance;
  });
  return values;
}

// ---------------------------------------------------------------------- the payload

// As `PayloadWriter` and `PayloadReader` of the package: by rows where `rows`, those of a band of y, is not null.
export class PayloadWriter {
  constructor(zTables, yTables, rows) {
    Object.assign(this, { zTables, yTables, rows, y: new Encoder() });
    this.z = rows === null ? this.y : new Encoder();
  }

  write(encoder, values, numbers, tables, parts) {
    for (const part of parts) writeSymbols(encoder, part.map((i) => values[i]), part.map((i) => numbers[i]), tables);
  }

  writeZ(values, channels, size) {
    this.write(this.z, values, channels, this.zTables, inBands(values.map((_, i) => i), size, this.rows && 1));
  }

  writeY(values, levels, where, size) {
    this.write(this.y, values, levels, this.yTables, inBands(where, size, this.rows));
  }

  bytes() {
    if (this.rows === null) return this.y.bytes();
    const z = this.z.bytes();
    return Uint8Array.from([...this.y.bytes(), ...z, ...varint(z.length).reverse()]);
  }
}

export class PayloadReader {
  constructor(payload, zTables, yTables, rows) {
    Object.assign(this, { zTables, yTables, rows });
    if (rows === null) this.y = this.z = new Decoder(payload);
    else {
      let end = payload.length, count = 0;
      for (const shift of [0, 7, 14]) {
        if (!end) throw new CodecError("the bytes fit no symbols");
        const byte = payload[--end];
        count |= (byte & 127) << shift;
        if (byte < 128) break;
      }
      if (count > end) throw new CodecError("the bytes fit no symbols");
      this.y = new Decoder(payload.slice(0, end - count));
      this.z = new Decoder(payload.slice(end - count, end));
    }
  }

  read(decoder, numbers, tables, parts) {
    const values = new Int32Array(numbers.length);
    for (const part of parts) {
      const read = readSymbols(decoder, part.map((i) => numbers[i]), tables);
      part.forEach((i, k) => (values[i] = read[k]));
    }
    return values;
  }

  readZ(channels, size) {
    return this.read(this.z, channels, this.zTables, inBands(Array.from(channels, (_, i) => i), size, this.rows && 1));
  }

  readY(levels, where, size) {
    return this.read(this.y, levels, this.yTables, inBands(where, size, this.rows));
  }
}

// ---------------------------------------------------------------------- the stream

async function digest(...parts) {
  return (await sha256(...parts)).slice(0, 3);
}

async function sha256(...parts) {
  const all = new Uint8Array(parts.reduce((sum, part) => sum + part.byteLength, 0));
  let at = 0;
  for (const part of parts) {
    all.set(new Uint8Array(part.buffer ?? part, part.byteOffset ?? 0, part.byteLength), at);
    at += part.byteLength;
  }
  return new Uint8Array(await crypto.subtle.digest("SHA-256", all));
}

// SHA-256 of the rows of (C, height, width), a band of `rows` rows after the other.
function sha256ByRows(values, [height, width], rows) {
  const ordered = inBands(values.map((_, i) => i), [height, width], rows).flat();
  return sha256(Int32Array.from(ordered, (i) => values[i]));
}

function varint(value) {
  const out = [];
  for (; value >= 128; value >>= 7) out.push((value & 127) | 128);
  return [...out, value];
}

const equal = (a, b) => a.length === b.length && a.every((value, i) => value === b[i]);

async function pack(stream, fingerprint) {
  const front = Uint8Array.from([MAGIC + VERSION, ...varint(stream.height - 1), ...varint(stream.width - 1), ...fingerprint.slice(0, 2)]);
  const dial = stream.dial === null ? [] : [stream.dial];
  const back = Uint8Array.from([...stream.check, ...dial, ...stream.payload]);
  return Uint8Array.from([...front, ...(await digest(fingerprint, front, back)), ...back]);
}

async function unpack(data, fingerprint, levels) {
  let at = 1;
  const number = () => {
    let value = 0;
    for (const shift of [0, 7, 14]) {
      value |= (data[at] & 127) << shift;
      if (data[at++] < 128) break;
    }
    return value + 1;
  };
  if (data[0] !== MAGIC + VERSION) throw new CodecError("this is no .aeic file of version 1, or it is damaged");
  const height = number(), width = number();
  if (data.length < at + 8 + (levels ? 1 : 0)) throw new CodecError("the file ends within its header; it is damaged");
  if (height > LARGEST_SIDE || width > LARGEST_SIDE) throw new CodecError("the header names an impossible size; the file is damaged");
  const end = at + 2;
  if (!equal(data.slice(at, end), fingerprint.slice(0, 2))) throw new CodecError("the file was written with another model, which this page does not have");
  if (!equal(data.slice(end, end + 3), await digest(fingerprint, data.slice(0, end), data.slice(end + 3))))
    throw new CodecError("the check value of the file is wrong: it is damaged, or cut short");
  const payload = end + 6 + (levels ? 1 : 0);
  return { height, width, check: data.slice(end + 3, end + 6), dial: levels ? data[end + 6] : null, payload: data.slice(payload) };
}

// ---------------------------------------------------------------------- tiles

const starts = (size, tile, overlap) => {
  const last = Math.max(size - tile, 0), found = [];
  for (let at = 0; at < last; at += tile - overlap) found.push(at);
  return [...found, last];
};
const profile = (size) => Float32Array.from({ length: size }, (_, i) => Math.exp(-(((i + 0.5) / size - 0.5) ** 2) / 0.02));

// `blend_tiles` of the package: `run` over overlapping tiles of x, averaged with a Gaussian window.
export async function blendTiles(run, x, tile, overlap, scale) {
  const [, channels, height, width] = x.dims;
  if (height * width <= tile ** 2) return run(x);
  const side = Math.min(tile, height, width);
  if (side >= 2 * overlap) tile = side;
  const H = height * scale, W = width * scale, weight = new Float32Array(H * W);
  let total, count;
  for (const top of starts(height, tile, overlap))
    for (const left of starts(width, tile, overlap)) {
      const rows = Math.min(tile, height - top), columns = Math.min(tile, width - left);
      const part = new Float32Array(channels * rows * columns);
      for (let c = 0; c < channels; c++)
        for (let row = 0; row < rows; row++) {
          const from = (c * height + top + row) * width + left;
          part.set(x.data.subarray(from, from + columns), (c * rows + row) * columns);
        }
      const out = await run({ data: part, dims: [1, channels, rows, columns] });
      const h = rows * scale, w = columns * scale, down = profile(h), right = profile(w);
      count = out.dims[1];
      total ??= new Float32Array(count * H * W);
      for (let row = 0; row < h; row++)
        for (let column = 0; column < w; column++) {
          const at = (top * scale + row) * W + left * scale + column, window = down[row] * right[column];
          weight[at] += window;
          for (let c = 0; c < count; c++) total[c * H * W + at] += window * out.data[(c * h + row) * w + column];
        }
    }
  return { data: total.map((value, i) => value / weight[i % (H * W)]), dims: [1, count, H, W] };
}

// ---------------------------------------------------------------------- the codec

const reflect = (i, size) => {
  const at = i % Math.max(2 * (size - 1), 1);
  return Math.max(Math.min(at, 2 * (size - 1) - at), 0);
};

export class Codec {
  // ort: onnxruntime-web; manifest, tables: parsed JSON; open: name of a graph -> its session, opened once.
  constructor(ort, manifest, tables, open) {
    Object.assign(this, { ort, tables, open, levels: manifest.levels, tiling: manifest.tiling, pattern: tables.pattern });
    this.fingerprint = Uint8Array.from(manifest.fingerprint.match(/../g), (byte) => parseInt(byte, 16));
    this.zTables = tables.z.map(makeTable);
    this.yTables = tables.y.map(makeTable);
    this.bounds = Float32Array.from(tables.level_bounds_times_2_to_20, (bound) => bound / 2 ** 20);
    this.rows = tables.by_rows ? tables.z_stride : null;
    this.threshold = tables.skip_threshold === null ? -Infinity : Math.fround(tables.skip_threshold);
  }

  async run(graph, inputs) {
    return (await this.open(graph)).run(inputs);
  }

  float(data, dims) {
    return new this.ort.Tensor("float32", data, dims);
  }

  levelInput(dial) {
    return dial === null ? {} : { level: this.float(Float32Array.of((dial * (this.levels - 1)) / DIAL), [1]) };
  }

  // RGBA pixels of a canvas -> y and z at a position of the dial (null for a model of one rate).
  async analyse({ width, height, data }, dial) {
    const multiple = this.tables.multiple, h = Math.ceil(height / multiple) * multiple, w = Math.ceil(width / multiple) * multiple;
    const x = new Float32Array(3 * h * w), unit = Math.fround(127.5);
    for (let row = 0; row < h; row++)
      for (let column = 0; column < w; column++) {
        const from = 4 * (reflect(row, height) * width + reflect(column, width));
        for (let c = 0; c < 3; c++) x[(c * h + row) * w + column] = Math.fround(data[from + c] / unit) - 1;
      }
    const { y, z } = await this.run("analysis", { x: this.float(x, [1, 3, h, w]), ...this.levelInput(dial) });
    return { y, z };
  }

  // The level of a scale: how many bounds are at most it.
  level(scale) {
    let low = -1, high = this.bounds.length;
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (this.bounds[middle] <= scale) low = middle;
      else high = middle;
    }
    return low + 1;
  }

  // y_hat, whose residuals `code` gives step by step: (positions that the step codes, means, scales) -> residuals.
  async steps(zHat, zDims, yDims, code) {
    const { phi } = await this.run("hyper_synthesis", { z_hat: this.float(zHat, zDims) });
    const [, channels, h, w] = yDims, [, wide, ph, pw] = phi.dims;
    let base = new Float32Array(wide * h * w);
    for (let c = 0; c < wide; c++)
      for (let row = 0; row < h; row++) base.set(phi.data.subarray((c * ph + row) * pw, (c * ph + row) * pw + w), (c * h + row) * w);
    const several = this.pattern.length > 1;
    for (let step = 0; step < this.pattern.length; step++) {
      const step_ = several ? { step: new this.ort.Tensor("int64", BigInt64Array.of(BigInt(step)), [1]) } : {};
      const { mean, scale } = await this.run("context", { base: this.float(base.slice(), [1, wide, h, w]), ...step_ });
      const mask = this.mask(step, channels, h, w);
      const coded = [];
      for (let i = 0; i < mask.length; i++) if (mask[i] && scale.data[i] >= this.threshold) coded.push(i);
      const residual = new Float32Array(mask.length), values = code(coded, mean.data, scale.data);
      coded.forEach((i, k) => (residual[i] = values[k]));
      if (!several) base = residual.map((value, i) => value + mean.data[i]);
      else for (let i = 0; i < mask.length; i++) if (mask[i]) base[i] = residual[i] + mean.data[i];
    }
    return base;
  }

  // Which positions of y a step codes. The four quarters of the channels differ by at most one channel in size.
  mask(step, channels, h, w) {
    const mask = new Uint8Array(channels * h * w);
    let first = 0;
    this.pattern[step].forEach((positions, quarter) => {
      const count = Math.floor(channels / 4) + (quarter < channels % 4 ? 1 : 0);
      for (let c = first; c < first + count; c++)
        for (const [row, column] of positions)
          for (let i = row; i < h; i += 2) for (let j = column; j < w; j += 2) mask[(c * h + i) * w + j] = 1;
      first += count;
    });
    return mask;
  }

  channels(dims) {
    const size = dims[2] * dims[3];
    return Uint16Array.from({ length: dims[1] * size }, (_, i) => Math.floor(i / size));
  }

  async check(zHat, zDims, yHat, yDims) {
    const z = Int32Array.from(zHat, (value) => value * MEDIAN_STEPS), y = Int32Array.from(yHat, (value) => value * MEAN_STEPS);
    if (this.rows === null) return digest(z, y);
    return digest(await sha256ByRows(z, zDims.slice(2), 1), await sha256ByRows(y, yDims.slice(2), this.rows));
  }

  median(i, dims) {
    return this.tables.medians_times_64[Math.floor(i / (dims[2] * dims[3]))] / MEDIAN_STEPS;
  }

  // {data, zHat, yHat, dims} of y and z.
  async encodeLatents(y, z, height, width, dial) {
    const writer = new PayloadWriter(this.zTables, this.yTables, this.rows);
    const symbols = Float32Array.from(z.data, (value, i) => clamp(rint(Math.fround(value - this.median(i, z.dims)))));
    writer.writeZ(symbols, this.channels(z.dims), z.dims.slice(2));
    const zHat = symbols.map((value, i) => value + this.median(i, z.dims));
    const yHat = await this.steps(zHat, z.dims, y.dims, (coded, mean, scale) => {
      const values = coded.map((i) => clamp(rint(Math.fround(y.data[i] - mean[i]))));
      writer.writeY(values, coded.map((i) => this.level(scale[i])), coded, y.dims.slice(2));
      return values;
    });
    const stream = { height, width, check: await this.check(zHat, z.dims, yHat, y.dims), dial, payload: writer.bytes() };
    return { data: await pack(stream, this.fingerprint), zHat, yHat, dims: y.dims, dial, height, width };
  }

  async encode(pixels, dial) {
    const { y, z } = await this.analyse(pixels, dial);
    return this.encodeLatents(y, z, pixels.height, pixels.width, dial);
  }

  // The best file of at most `most` bytes; `progress` is told how many of nine passes are done.
  async within(pixels, most, progress = () => {}) {
    let best = await this.encode(pixels, this.levels ? 0 : null);
    if (best.data.length > most) throw new CodecError(`${most} bytes are too few: the smallest file of this photograph has ${best.data.length}`);
    let low = 0, high = this.levels ? DIAL + 1 : 1;
    for (let pass = 1; high - low > 1; pass++) {
      progress(pass, 9);
      const middle = (low + high) >> 1, made = await this.encode(pixels, middle);
      if (made.data.length <= most) [low, best] = [middle, made];
      else high = middle;
    }
    return best;
  }

  // The latents of a file: exactly the sender's, or a CodecError.
  async decode(data) {
    const stream = await unpack(data, this.fingerprint, this.levels);
    const { multiple, stride, z_stride: zStride } = this.tables, { height, width } = stream;
    const h = (Math.ceil(height / multiple) * multiple) / stride, w = (Math.ceil(width / multiple) * multiple) / stride;
    const zDims = [1, this.zTables.length, Math.ceil(h / zStride), Math.ceil(w / zStride)];
    const reader = new PayloadReader(stream.payload, this.zTables, this.yTables, this.rows);
    const zHat = Float32Array.from(reader.readZ(this.channels(zDims), zDims.slice(2)), (value, i) => value + this.median(i, zDims));
    const dims = [1, this.tables.channels, h, w];
    const yHat = await this.steps(zHat, zDims, dims, (coded, _, scale) => reader.readY(coded.map((i) => this.level(scale[i])), coded, [h, w]));
    if (!equal(await this.check(zHat, zDims, yHat, dims), stream.check))
      throw new CodecError("the decoded latents are not the sender's, so the picture would be wrong");
    return { data, zHat, yHat, dims, dial: stream.dial, height, width };
  }

  async inTiles(inputs) {
    const { unet_tile, unet_overlap, vae_tile, vae_overlap } = this.tiling;
    const part = (graph, name, output) => async ({ data, dims }) => (await this.run(graph, { [name]: this.float(data, dims) }))[output];
    const { l_T, l_res } = await this.run("features", inputs);
    const l_0 = await blendTiles(part("denoiser", "l_T", "l_0"), l_T, unet_tile, unet_overlap, 1);
    const latents = { data: l_0.data.map((value, i) => value + l_res.data[i]), dims: l_res.dims };
    return blendTiles(part("vae", "latents", "x_hat"), latents, vae_tile, vae_overlap, 8);
  }

  // RGBA pixels of latents.
  async picture({ yHat, dims, dial, height, width }) {
    const inputs = { y_hat: this.float(yHat, dims), ...this.levelInput(dial) };
    const x_hat = this.tiling ? await this.inTiles(inputs) : (await this.run("synthesis", inputs)).x_hat;
    const [, , h, w] = x_hat.dims, data = new Uint8ClampedArray(4 * height * width).fill(255);
    for (let row = 0; row < height; row++)
      for (let column = 0; column < width; column++)
        for (let c = 0; c < 3; c++)
          data[4 * (row * width + column) + c] = rint((Math.max(-1, Math.min(1, x_hat.data[(c * h + row) * w + column])) + 1) * 127.5);
    return { width, height, data };
  }
}
