const at = (id) => document.getElementById(id);
const LARGEST = 1024; // pixels a side of what is coded here: larger photographs are shrunk
const worker = new Worker("worker.js", { type: "module" });
const waiting = new Map();
let count = 0, source = null, file = null, ready = false;

const say = (text, bad = false) => {
  at("said").textContent = text;
  at("said").classList.toggle("bad", bad);
};
export const call = (task, given) =>
  new Promise((resolve, reject) => {
    waiting.set(++count, [resolve, reject]);
    worker.postMessage({ id: count, task, ...given });
  });
window.call = call;

worker.onerror = (event) => say(`it cannot start: ${event.message ?? "this browser is too old"}`, true);
worker.onmessage = ({ data }) => {
  if (data.loaded !== undefined) {
    at("load").max = data.total;
    at("load").value = data.loaded;
    say(`loading the codec: ${(data.loaded / 1e6).toFixed(1)} of ${(data.total / 1e6).toFixed(1)} MB`);
  } else if (data.ready) {
    ready = true;
    at("load").hidden = true;
    at("rate-row").hidden = !data.levels;
    at("go").disabled = !source;
    document.documentElement.dataset.ready = "true";
    say(`Ready: ${(data.bytes / 1e6).toFixed(1)} MB, kept by your browser. Choose a photograph.`);
  } else if (data.failed) say(`it cannot start: ${data.failed}`, true);
  else if (data.doing) say(data.doing);
  else {
    const [resolve, reject] = waiting.get(data.id);
    waiting.delete(data.id);
    data.error ? reject(new Error(data.error)) : resolve(data);
  }
};

async function pixelsOf(blob) {
  const image = await createImageBitmap(blob);
  const scale = Math.min(1, LARGEST / Math.max(image.width, image.height));
  const canvas = at("left");
  canvas.width = Math.max(1, Math.round(image.width * scale));
  canvas.height = Math.max(1, Math.round(image.height * scale));
  const pen = canvas.getContext("2d", { willReadFrequently: true });
  pen.fillStyle = "white"; // behind what is transparent
  pen.fillRect(0, 0, canvas.width, canvas.height);
  pen.drawImage(image, 0, 0, canvas.width, canvas.height);
  const { width, height, data } = pen.getImageData(0, 0, canvas.width, canvas.height);
  return { width, height, data };
}

function show({ width, height, data }) {
  const canvas = at("right");
  canvas.width = width;
  canvas.height = height;
  canvas.getContext("2d").putImageData(new ImageData(data, width, height), 0, 0);
  at("compare").hidden = false;
  at("compare").classList.toggle("coded", !!(source && file));
}

function psnr(a, b) {
  let sum = 0;
  for (let i = 0; i < a.length; i++) if (i % 4 < 3) sum += (a[i] - b[i]) ** 2;
  return 10 * Math.log10((255 ** 2 * a.length * 0.75) / sum);
}

async function busy(work) {
  for (const button of document.querySelectorAll("button, input")) button.disabled = true;
  try {
    await work();
  } catch (error) {
    say(error.message, true);
  }
  for (const button of document.querySelectorAll("button, input")) button.disabled = false;
  at("go").disabled = !(ready && source);
  at("save").disabled = at("png").disabled = !file;
}

async function decoded(data, before = "") {
  say("decoding the file ...");
  const latents = await call("decode", { data });
  say("painting the picture ...");
  const painted = await call("picture", { latents: latents.result });
  const { width, height, data: shown } = painted.result;
  file = data;
  show(painted.result);
  const bpp = (8 * data.length) / (width * height);
  const quality = source ? `, PSNR ${psnr(source.data, shown).toFixed(2)} dB` : "";
  const times = `${before}decoded in ${(latents.seconds + painted.seconds).toFixed(1)} s`;
  say(`${width} x ${height}: ${data.length} bytes, ${bpp.toFixed(4)} bpp${quality}; ${times}`);
}

at("photo").onchange = () =>
  busy(async () => {
    const [chosen] = at("photo").files;
    if (!chosen) return;
    source = null;
    source = await pixelsOf(chosen).catch(() => {
      throw new Error(`${chosen.name} is no photograph that this browser can read`);
    });
    file = null;
    show(source);
    say(`${chosen.name}: ${source.width} x ${source.height} pixels`);
  });
at("go").onclick = () =>
  busy(async () => {
    say("compressing ...");
    const most = Number(at("most").value) || 0;
    const made = await call("encode", { pixels: source, dial: Number(at("rate").value), most });
    await decoded(made.result.data, `compressed in ${made.seconds.toFixed(1)} s, `);
  });
at("stream").onchange = () =>
  busy(async () => {
    const [chosen] = at("stream").files;
    if (!chosen) return;
    source = null;
    at("left").width = at("left").height = 1;
    await decoded(new Uint8Array(await chosen.arrayBuffer()));
  });
function download(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}
at("save").onclick = () => download(new Blob([file]), "photo.aeic");
at("png").onclick = () => at("right").toBlob((blob) => download(blob, "photo.png"));
at("slide").oninput = () => at("stage").style.setProperty("--at", `${at("slide").value}%`);
