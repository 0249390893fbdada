// Loads the runtime and the model, and codes: the page stays free to scroll.
import * as ort from "./ort.wasm.min.mjs";
import { Codec, CodecError } from "./codec.js";

let codec, files;
const sessions = new Map();

// A file of the site, unpacked. From the browser's cache where its digest is there; `seen` is told of its bytes.
async function fetched({ url }, seen) {
  const cache = await caches.open("aeic-files").catch(() => null);
  let response = await cache?.match(url);
  if (!response) {
    response = await fetch(url);
    if (!response.ok) throw new CodecError(`${url} cannot be loaded (${response.status})`);
    await cache?.put(url, response.clone()).catch(() => {});
  }
  const counted = new TransformStream({ transform: (chunk, out) => (seen(chunk.byteLength), out.enqueue(chunk)) });
  const unpacked = response.body.pipeThrough(counted).pipeThrough(new DecompressionStream("gzip"));
  return new Response(unpacked).arrayBuffer();
}

async function load() {
  const { manifest, tables, files: listed } = await (await fetch("codec.json")).json();
  const total = Object.values(listed).reduce((sum, file) => sum + file.bytes, 0);
  let done = 0;
  const seen = (bytes) => postMessage({ loaded: (done += bytes), total });
  files = {};
  for (const [name, file] of Object.entries(listed)) files[name] = await fetched(file, seen);
  ort.env.wasm.numThreads = 1;
  ort.env.wasm.wasmPaths = { mjs: new URL("./ort-wasm-simd-threaded.mjs", import.meta.url).href };
  ort.env.wasm.wasmBinary = files["runtime"];
  codec = new Codec(ort, manifest, tables, open);
  postMessage({ ready: true, levels: codec.levels, bytes: total, fingerprint: manifest.fingerprint });
}

async function open(graph) {
  if (!sessions.has(graph)) {
    sessions.set(graph, await ort.InferenceSession.create(files[graph], { executionProviders: ["wasm"] }));
    delete files[graph];
  }
  return sessions.get(graph);
}

const tasks = {
  async encode({ pixels, dial, most }) {
    const progress = (pass, of) => postMessage({ doing: `searching the rate, pass ${pass} of ${of}` });
    return most ? codec.within(pixels, most, progress) : codec.encode(pixels, codec.levels ? dial : null);
  },
  decode: ({ data }) => codec.decode(data),
  picture: ({ latents }) => codec.picture(latents),
  // For tests: a stream of given latents.
  encodeLatents: ({ y, z, height, width, dial }) => codec.encodeLatents(y, z, height, width, dial),
};

const loading = load().catch((error) => postMessage({ failed: error.message }));
onmessage = async ({ data: { id, task, ...given } }) => {
  await loading;
  try {
    const began = performance.now(), result = await tasks[task](given);
    postMessage({ id, result, seconds: (performance.now() - began) / 1000 });
  } catch (error) {
    const known = error instanceof CodecError;
    postMessage({ id, error: known ? error.message : `it failed: ${error.message ?? error}` });
  }
};
