"use strict";
// The page of `aethernet ui`. Everything it asks for comes from its own server.

const settings = JSON.parse(document.getElementById("settings").textContent);
const element = (id) => document.getElementById(id);
const UPLOADS_AT_ONCE = 3, LOOK_MS = 400, RETRY_MS = 2000;
const THUMBNAIL_BYTES = 40e6, THUMBNAILS = 60;

// Of each tab: what was chosen, and the id of the task that is shown.
const tabs = {
  pictures: { files: [], task: null },
  video: { files: [], task: null },
};
let kind = "pictures";
let drawn = "";  // the results that are on the page, to draw them once

function tab() { return tabs[kind]; }

function made(tag, properties = {}, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
}

// ---- The server

async function ask(method, path, body) {
  const answer = await fetch(path, {
    method,
    headers: body === undefined ? {} : { "Content-Type": "application/json" },
    body: body === undefined ? undefined : JSON.stringify(body),
  });
  const said = await answer.json().catch(() => ({}));
  if (!answer.ok) {
    const error = new Error(said.error || `The server failed (${answer.status}).`);
    error.status = answer.status;
    throw error;
  }
  return said;
}

// Stores a file; gives the path that the server knows it by.
function upload(entry) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest(), form = new FormData();
    form.append("files", entry.file, entry.file.name);
    request.open("POST", "gradio_api/upload");
    request.upload.onprogress = (event) => {
      if (event.lengthComputable) entry.sent(event.loaded / event.total);
    };
    request.onload = () => {
      let answer = null;
      try { answer = JSON.parse(request.responseText); } catch { /* plain text */ }
      if (request.status === 200 && Array.isArray(answer)) resolve(answer[0]);
      else reject(new Error(typeof answer === "string" || answer === null
        ? request.responseText.slice(0, 300) || `The upload failed (${request.status}).`
        : `The upload failed (${request.status}).`));
    };
    request.onerror = () => reject(new Error("The upload failed: the server does not answer."));
    request.onabort = () => reject(new Error("The upload was stopped."));
    entry.stop = () => request.abort();
    request.send(form);
  });
}

// ---- Remembered for a reload of this tab of the browser

function remember() {
  const kept = { kind };
  for (const [name, each] of Object.entries(tabs)) {
    const files = each.files.filter((entry) => entry.state === "good");
    kept[name] = {
      task: each.task,
      files: files.map(({ path, name: called }) => ({ path, name: called })),
    };
  }
  try { sessionStorage.setItem("aethernet", JSON.stringify(kept)); } catch { /* full or off */ }
}

function recalled() {
  try { return JSON.parse(sessionStorage.getItem("aethernet")) || {}; } catch { return {}; }
}

// ---- Files

const suffix = (name) => (name.match(/\.[^./\\]+$/) || [""])[0].toLowerCase();

function entryFor(name, file, path) {
  return { name, file, path, state: file ? "waiting" : "checking", info: null, reason: "", share: 0 };
}

function add(found) {
  const videos = found.filter(([name]) => settings.videos.includes(suffix(name)));
  if (kind === "pictures" && found.length && videos.length === found.length) show("video");
  const target = tab(), into = kind;
  const wanted = kind === "video" ? found.slice(0, 1) : found;
  if (kind === "video") target.files.forEach((entry) => entry.stop?.());
  if (kind === "video" && wanted.length) target.files = [];
  for (const [name, file] of wanted) {
    if (target.files.length >= settings.mostFiles) break;
    const entry = entryFor(name, file);
    if (file.size > settings.largestUpload) {
      entry.state = "bad";
      entry.reason = `The file has ${bytes(file.size)}; at most ${bytes(settings.largestUpload)} can be uploaded.`;
    } else if (!file.size) {
      entry.state = "bad";
      entry.reason = "The file is empty.";
    }
    target.files.push(entry);
  }
  refuse("");
  note(found.length > wanted.length ? "One video at a time: the first was taken." : "");
  drawFiles();
  work(into);
}

// Uploads and checks what waits, a few at a time.
function work(into) {
  const files = tabs[into].files;
  const busy = files.filter((entry) => entry.state === "uploading").length;
  files.filter((entry) => entry.state === "waiting").slice(0, UPLOADS_AT_ONCE - busy).forEach(async (entry) => {
    entry.state = "uploading";
    entry.sent = (share) => {
      entry.share = share;
      const bar = entry.row?.querySelector("progress");
      if (bar) bar.value = share;
    };
    try {
      entry.path = await upload(entry);
      await check(entry, into);
    } catch (error) {
      entry.state = "bad";
      entry.reason = error.message;
    }
    drawFiles();
    remember();
    work(into);
  });
}

async function check(entry, into) {
  try {
    const found = await ask("POST", "checks", { kind: into, path: entry.path, name: entry.name });
    entry.info = found;
    entry.reason = found.reason || "";
    entry.state = found.reason ? "bad" : "good";
  } catch (error) {
    entry.state = "bad";
    entry.reason = error.status ? error.message : "The server does not answer.";
  }
}

function scaleFor([width, height]) {
  if (kind === "video" || element("size").value === "") {
    return settings.models.find((model) => model.name === element("model").value)?.scale;
  }
  if (element("size").value !== "sides") return Number(element("size").value);
  const wanted = [[element("width").value, width], [element("height").value, height]];
  return Math.min(...wanted.filter(([to]) => to).map(([to, from]) => to / from));
}

// Whether the result would have more megapixels than the page makes.
function tooLarge(entry) {
  if (kind === "video" || entry.state !== "good") return false;
  const [width, height] = entry.info.size, scale = scaleFor(entry.info.size);
  return Number.isFinite(scale) && (width * height * scale ** 2) / 1e6 > settings.mostMegapixels;
}

const usable = (entry) => entry.state === "good" && !tooLarge(entry);
const refused = (entry) => entry.state === "bad" || tooLarge(entry);

function describe(entry) {
  if (entry.state === "bad") return entry.reason;
  if (entry.state !== "good") return "";
  if (tooLarge(entry)) {
    return `${entry.info.size.join("x")}: the result would have more than ${settings.mostMegapixels} megapixels.`;
  }
  const [width, height] = entry.info.size, scale = scaleFor(entry.info.size);
  const sizes = [`${width}x${height}`];
  if (Number.isFinite(scale)) sizes.push(`${Math.round(width * scale)}x${Math.round(height * scale)}`);
  const parts = [sizes.join(" → ")];
  if (entry.info.seconds) parts.push(`${entry.info.seconds.toFixed(1)} s`);
  return parts.join(", ");
}

function thumbnail(entry, number) {
  const plain = made("span", { className: "thumb none", textContent: suffix(entry.name).slice(1, 5) || "?" });
  const large = entry.file?.size > THUMBNAIL_BYTES || number >= THUMBNAILS;
  if (large || kind === "video" || entry.state === "bad") return plain;
  entry.preview ||= entry.file ? URL.createObjectURL(entry.file) : `gradio_api/file=${encodeURI(entry.path)}`;
  const image = made("img", { className: "thumb", src: entry.preview, alt: "", loading: "lazy" });
  image.onerror = () => image.replaceWith(plain);
  return image;
}

function drawFiles() {
  const { files } = tab();
  element("chosen").hidden = !files.length;
  element("drop").classList.toggle("small", files.length > 0);
  const bad = files.filter(refused).length;
  const busy = files.filter((entry) => entry.state !== "bad" && entry.state !== "good").length;
  const noun = kind === "video" ? "video" : "picture";
  const parts = [`${files.length} ${noun}${files.length === 1 ? "" : "s"}`];
  if (busy) parts.push(`${busy} on the way`);
  if (bad) parts.push(`${bad} cannot be used`);
  element("count").textContent = parts.join(", ");
  element("files").replaceChildren(...files.map((entry, number) => {
    const info = made("div", { className: "info", textContent: describe(entry) });
    if (entry.state === "waiting") info.textContent = "waiting";
    if (entry.state === "uploading" || entry.state === "checking") {
      info.replaceChildren(made("progress", { value: entry.share, ariaLabel: "Upload" }));
    }
    const remove = made("button", { type: "button", textContent: "×", ariaLabel: `Remove ${entry.name}` });
    remove.onclick = () => {
      entry.stop?.();
      tab().files = tab().files.filter((each) => each !== entry);
      drawFiles();
      remember();
    };
    const text = made("div", {}, made("div", { className: "name", textContent: entry.name, title: entry.name }), info);
    entry.row = made("li", { className: refused(entry) ? "bad" : entry.state }, thumbnail(entry, number), text, remove);
    return entry.row;
  }));
  if (bad) element("files").querySelector(".bad").scrollIntoView({ block: "nearest" });
  drawActions();
}

function drawActions() {
  const { files } = tab();
  const ready = files.some(usable)
    && files.every((entry) => entry.state === "good" || entry.state === "bad");
  element("upscale").disabled = element("preview").disabled = !ready;
  const good = files.filter(usable).length;
  element("upscale").textContent = kind === "pictures" && good > 1 ? `Upscale ${good} pictures` : "Upscale";
}

// Files of a drop, with those in folders.
async function dropped(items) {
  const entries = [...items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  const found = [];
  async function search(entry) {
    if (entry.isFile) {
      const file = await new Promise((resolve, reject) => { entry.file(resolve, reject); });
      found.push([entry.fullPath.replace(/^\//, ""), file]);
      return;
    }
    const reader = entry.createReader();
    for (;;) {
      const some = await new Promise((resolve, reject) => { reader.readEntries(resolve, reject); });
      if (!some.length) return;
      for (const each of some) await search(each);
    }
  }
  const folder = entries.some((entry) => entry.isDirectory);
  for (const entry of entries) await search(entry);
  return folder ? ofFolder(found) : found;
}

// Of a folder only files with the names of pictures are taken.
function ofFolder(found) {
  const known = kind === "video" ? settings.videos : settings.pictures;
  const taken = found.filter(([name]) => known.includes(suffix(name)) && !/(^|\/)\./.test(name));
  taken.sort(([a], [b]) => a.localeCompare(b, "en", { numeric: true }));
  return taken;
}

function take(found, of) {
  add(found);
  if (!found.length) refuse("There is no picture in this folder.");
  else if (of > found.length) note(`${count(of - found.length, "other file")} in the folder left out.`);
}

// ---- The order

function refuse(text) {
  element("refused").textContent = text;
  element("refused").hidden = !text;
}

function note(text) {
  element("note").textContent = text;
  element("note").hidden = !text;
}

const number = (id) => (element(id).value === "" ? null : Number(element(id).value));

function order(preview) {
  const files = tab().files.filter(usable);
  const wanted = {
    kind,
    files: files.map(({ path, name }) => ({ path, name })),
    model: element("model").value,
    device: element("device").value,
  };
  if (kind === "video") {
    return { ...wanted, preview, format: element("container").value, codec: element("codec").value, crf: number("crf") };
  }
  const size = element("size").value;
  if (size === "sides") Object.assign(wanted, { width: number("width"), height: number("height") });
  else if (size) wanted.scale = Number(size);
  return { ...wanted, format: element("format").value, quality: number("quality") };
}

async function start(preview) {
  refuse("");
  if (kind === "pictures" && element("size").value === "sides" && !number("width") && !number("height")) {
    refuse("Say how wide or how high the pictures are to become.");
    element("width").focus();
    return;
  }
  try {
    const task = await ask("POST", "tasks", order(preview));
    tab().task = task.id;
    remember();
    draw(task);
    follow();
    if (matchMedia("(max-width: 860px)").matches) element("result").scrollIntoView({ behavior: "smooth" });
  } catch (error) {
    refuse(error.status ? error.message : "The server does not answer.");
  }
}

// ---- The task

let timer = null;

// Draws the task of this tab until it has ended.
async function follow() {
  clearTimeout(timer);
  const followed = kind, id = tab().task;
  let wait = LOOK_MS;
  if (!id) {
    draw(null);
    return;
  }
  try {
    const task = await ask("GET", `tasks/${id}`);
    if (kind !== followed || tab().task !== id) return;
    element("lost").hidden = true;
    draw(task);
    if (task.state !== "waiting" && task.state !== "running") return;
  } catch (error) {
    if (kind !== followed || tab().task !== id) return;
    if (error.status === 404) {
      tab().task = null;
      remember();
      draw(null);
      return;
    }
    element("lost").hidden = false;
    wait = RETRY_MS;
  }
  clearTimeout(timer);
  timer = setTimeout(follow, wait);
}

function draw(task) {
  const alive = task && (task.state === "waiting" || task.state === "running");
  element("empty").hidden = Boolean(task);
  element("progress").hidden = !alive;
  element("done").hidden = !task || alive || !task.results.length;
  const told = task && (task.results.length || task.failures.length) && task.state !== "cancelled";
  element("error").hidden = !task || alive || (told && !task.error) || Boolean(task.results.length && !task.error);
  document.title = alive ? `${Math.floor(task.share * 100)}% · AetherNet` : "AetherNet";
  if (alive) drawProgress(task);
  drawFailures(task);
  drawResults(task, alive);
  if (!task || alive) return;
  element("error").textContent = task.error || (task.state === "cancelled" ? "Cancelled." : "There is no result.");
  if (task.results.length) drawSummary(task);
}

function drawProgress(task) {
  element("phase").textContent = task.ahead ? `Waiting for ${count(task.ahead, "other task")}` : task.phase;
  element("bar").setAttribute("aria-valuenow", Math.floor(task.share * 100));
  element("bar").firstElementChild.style.width = `${task.share * 100}%`;
  element("share").textContent = task.state === "running" ? `${Math.floor(task.share * 100)}%, ${duration(task.seconds)}` : "";
  let left = "";
  if (task.seconds_left !== null) left = `about ${duration(task.seconds_left)} left`;
  else if (task.state === "running") left = "estimating the time";
  element("left").textContent = left;
  element("cancel").disabled = task.phase === "Stopping";
}

function drawFailures(task) {
  const failures = task?.failures || [];
  element("failures").hidden = !failures.length;
  element("failures").replaceChildren(...failures.map(({ name, reason }) => made("li", { textContent: `${name}: ${reason}` })));
}

const address = (task, number, view = "") => `tasks/${task.id}/files/${number}${view && `/${view}.webp`}`;
const sizes = (result) => `${result.size_before.join("x")} → ${result.size_after.join("x")}`;

function drawSummary(task) {
  const { results } = task, one = results.length === 1;
  const title = one ? `${results[0].name}: ${sizes(results[0])}` : count(results.length, "picture");
  element("outcome").textContent = task.state === "cancelled" ? `Cancelled; finished: ${title}` : title;
  const total = results.reduce((sum, result) => sum + (result.bytes || 0), 0);
  const parts = [`${duration(task.seconds)}`, bytes(total), task.how];
  if (one && results[0].remark) parts.push(results[0].remark);
  element("how").textContent = parts.filter(Boolean).join(" · ");
  element("download").href = one ? address(task, 0) : `tasks/${task.id}/zip`;
  element("download").textContent = one ? "Download" : "Download all (zip)";
}

function drawResults(task, alive) {
  const results = task?.results || [];
  const key = `${task?.id} ${results.length} ${alive}`;
  if (key === drawn) return;
  drawn = key;
  const video = task?.kind === "video", ended = task && !alive && results.length > 0;
  const gallery = element("gallery");
  gallery.hidden = video || results.length < 2;
  gallery.replaceChildren(...(gallery.hidden ? [] : results.map((result, number) => card(task, result, number))));
  const player = element("player");
  player.hidden = !(video && ended);
  element("unplayable").hidden = true;
  if (video && ended) player.src = `${address(task, 0)}?show`;
  else player.removeAttribute("src");
  element("comparison").hidden = !ended;
  const frame = element("comparison").querySelector("iframe");
  if (ended) {
    element("comparison").querySelector("h3").textContent = video ? "One frame, before it was encoded" : "Before and after";
    frame.src = `tasks/${task.id}/compare`;
    select(0);
  } else {
    frame.removeAttribute("src");
  }
}

function card(task, result, number) {
  const image = made("img", { src: address(task, number, "thumbnail"), alt: "", loading: "lazy" });
  const open = made("button", { type: "button", className: "open", ariaLabel: `Compare ${result.name}` }, image);
  open.onclick = () => select(number, true);
  const name = made("p", { className: "name", textContent: result.name, title: result.name });
  const info = made("p", { className: "info", textContent: result.size_after.join("x"), title: result.remark });
  const link = made("a", { href: address(task, number), download: "", textContent: "Download", ariaLabel: `Download ${result.name}` });
  return made("li", {}, open, made("div", {}, name, info, link));
}

// Shows a result in the comparison.
function select(number, scroll = false) {
  element("gallery").querySelectorAll("li").forEach((each, at) => each.classList.toggle("current", at === number));
  const frame = element("comparison").querySelector("iframe");
  if (scroll && frame.contentWindow?.show) {
    frame.contentWindow.show(number);
    frame.scrollIntoView({ behavior: "smooth", block: "nearest" });
  }
}

// ---- Words

const count = (many, noun) => `${many} ${noun}${many === 1 ? "" : "s"}`;

function duration(seconds) {
  if (seconds < 10) return `${Math.max(seconds, 0.1).toFixed(1)} s`;
  if (seconds < 90) return `${Math.round(seconds)} s`;
  const minutes = Math.round(seconds / 60);
  if (minutes < 90) return `${minutes} min`;
  return `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

function bytes(size) {
  if (size < 1e6) return `${Math.ceil(size / 1e3)} KB`;
  return size < 1e9 ? `${(size / 1e6).toFixed(1)} MB` : `${(size / 1e9).toFixed(1)} GB`;
}

// ---- Tabs

function show(which) {
  kind = which;
  for (const each of document.querySelectorAll("[role=tab]")) {
    const chosen = each.dataset.kind === kind;
    each.setAttribute("aria-selected", chosen);
    each.tabIndex = chosen ? 0 : -1;
  }
  element("order").setAttribute("aria-labelledby", `tab-${kind}`);
  for (const each of document.querySelectorAll("[data-for]")) each.hidden = each.dataset.for !== kind;
  const video = kind === "video";
  element("drop-title").textContent = video ? "Drop a video here" : "Drop pictures or a folder here";
  element("choose-files").textContent = video ? "Choose a video" : "Choose files";
  element("choose-folder").hidden = video;
  element("files-input").multiple = !video;
  element("sides").hidden = video || element("size").value !== "sides";
  element("empty").querySelector("p").textContent = video
    ? "The result appears here, with one frame before and after. Try five seconds of a long video first."
    : "Results appear here, before and after side by side.";
  refuse(video ? settings.noVideo : "");
  note("");
  element("lost").hidden = true;
  drawn = "";
  drawFiles();
  remember();
  follow();
}

// ---- Start

function fill(id, options) {
  element(id).append(...options.map(([value, text]) => made("option", { value, textContent: text })));
}

fill("model", settings.models.map(({ name }) => [name, name]));
fill("device", settings.devices.map(({ name, label }) => [name, name === "auto" ? label : `${label} (${name})`]));
fill("format", settings.formats.map(({ suffix: value, name }) => [value, name]));
fill("container", settings.containers.map((value) => [value, value.slice(1).toUpperCase()]));
fill("codec", settings.codecs.map((value) => [value, value]));

document.querySelectorAll("[role=tab]").forEach((each) => {
  each.onclick = () => show(each.dataset.kind);
  each.onkeydown = (event) => {
    if (event.key !== "ArrowLeft" && event.key !== "ArrowRight") return;
    show(kind === "video" ? "pictures" : "video");
    element(`tab-${kind}`).focus();
  };
});
element("choose-files").onclick = () => element("files-input").click();
element("choose-folder").onclick = () => element("folder-input").click();
element("files-input").onchange = (event) => {
  add([...event.target.files].map((file) => [file.name, file]));
  event.target.value = "";
};
element("folder-input").onchange = (event) => {
  const all = [...event.target.files].map((file) => [file.webkitRelativePath || file.name, file]);
  event.target.value = "";
  take(ofFolder(all), all.length);
};
element("clear").onclick = () => {
  tab().files.forEach((entry) => entry.stop?.());
  tab().files = [];
  refuse("");
  note("");
  drawFiles();
  remember();
};
for (const id of ["model", "size", "width", "height"]) {
  element(id).oninput = () => {
    element("sides").hidden = kind === "video" || element("size").value !== "sides";
    refuse("");
    drawFiles();
  };
}
element("order").onsubmit = (event) => {
  event.preventDefault();
  start(false);
};
element("preview").onclick = () => start(true);
element("cancel").onclick = async () => {
  element("cancel").disabled = true;
  try { draw(await ask("DELETE", `tasks/${tab().task}`)); } catch { element("lost").hidden = false; }
};
element("player").onerror = () => {
  if (!element("player").getAttribute("src")) return;
  element("player").hidden = true;
  element("unplayable").hidden = false;
};

// Anywhere on the page, so that no file that misses opens in the browser instead.
let over = 0;
addEventListener("dragenter", () => element("drop").classList.toggle("over", (over += 1) > 0));
addEventListener("dragleave", () => element("drop").classList.toggle("over", (over -= 1) > 0));
addEventListener("dragover", (event) => event.preventDefault());
addEventListener("drop", async (event) => {
  event.preventDefault();
  over = 0;
  element("drop").classList.remove("over");
  const found = await dropped(event.dataTransfer.items);
  take(found, found.length);
});
addEventListener("paste", (event) => {
  const found = [...event.clipboardData.files].map((file) => [file.name, file]);
  if (found.length) add(found);
});

// A task that another tab or an earlier visit has started.
async function lookForOthers() {
  const running = (await ask("GET", "tasks").catch(() => [])).find(({ state }) => state === "running");
  if (!running || Object.values(tabs).some(({ task }) => task === running.id)) return;
  const others = element("others");
  others.querySelector("span").textContent = `${running.title} is being upscaled.`;
  others.querySelector("button").onclick = () => {
    others.hidden = true;
    tabs[running.kind].task = running.id;
    show(running.kind);
  };
  others.hidden = false;
}

(function begin() {
  const before = recalled();
  for (const name of Object.keys(tabs)) {
    tabs[name].task = before[name]?.task || null;
    tabs[name].files = (before[name]?.files || []).map(({ name: called, path }) => entryFor(called, null, path));
    tabs[name].files.forEach(async (entry) => {
      await check(entry, name);
      if (name === kind) drawFiles();
    });
  }
  show(before.kind === "video" ? "video" : "pictures");
  lookForOthers();
}());
