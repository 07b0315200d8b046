// The page: what is chosen, the list of pictures, the comparison, and what is saved.
import { zip } from './files';
import type { Ask, Device, Model, Tell } from './model';

interface Item {
  file: File;
  row: HTMLLIElement;
  /** Addresses of the source and of the result. */
  urls: string[];
  state: 'waiting' | 'working' | 'done' | 'failed';
  picture?: Blob;
  /** Of the result, which is `scale` times as large as the source. */
  width: number;
  height: number;
  scale: number;
  started: number;
}

const get = <T extends HTMLElement>(query: string, from: ParentNode = document) => from.querySelector<T>(query)!;
const [modelBox, deviceBox, formatBox] = ['#model', '#device', '#format'].map((id) => get<HTMLSelectElement>(id));
const [viewer, stage, sheet, line] = ['#viewer', '.stage', '.sheet', '.line'].map((query) => get(query));
const [drop, state] = [get('#drop'), get('#engine')];
const split = get<HTMLInputElement>('#split');
const models: Model[] = await (await fetch('./models.json')).json();
let items: Item[] = [];
let shown: Item | undefined;
let worker: Worker | undefined;
let ready = false;
let zoom = 0;

const start = () => new Worker(new URL('./worker.ts', import.meta.url), { type: 'module' });
const ask = (to: Worker, message: Ask) => to.postMessage(message);
const current = () => items.find((item) => item.state === 'working');
const model = () => models[modelBox.selectedIndex];

/** Start a worker with the chosen model; what another one worked on waits again. */
function restart(device = deviceBox.value as Device, notes: string[] = []): void {
  worker?.terminate();
  for (const item of items) if (item.state === 'working') change(item, 'waiting', 'Waiting');
  ready = false;
  worker = start();
  worker.onmessage = ({ data }: MessageEvent<Tell>) => hear(data, notes);
  worker.onerror = () => (state.textContent = 'This browser cannot run the page.');
  ask(worker, { kind: 'load', model: model(), device, root: new URL('./', location.href).href });
}

function hear(message: Tell, notes: string[]): void {
  const item = current();
  if (message.kind === 'loading') state.textContent = message.text;
  else if (message.kind === 'loaded') {
    state.textContent = [`Runs on: ${message.engine}.`, ...notes, ...message.notes].join(' ');
    ready = true;
    next();
  } else if (message.kind === 'lost') restart('wasm', ['The graphics card stopped working.']);
  else if (!item) return;
  else if (message.kind === 'progress') progress(item, message.done);
  else if (message.kind === 'failed') finish(item, 'failed', message.text);
  else if (message.kind === 'done') {
    const { picture, width, height } = message;
    const { scale } = model();
    const sizes = `${width / scale} × ${height / scale} → ${width} × ${height}`;
    item.urls.push(URL.createObjectURL(picture));
    Object.assign(item, { picture, width, height, scale });
    finish(item, 'done', [sizes, ...message.notes].join('. '));
  }
}

function progress(item: Item, done: number): void {
  get<HTMLProgressElement>('progress', item.row).value = done;
  const left = ((performance.now() - item.started) * (1 - done)) / done / 1000;
  const time = left < 90 ? `${Math.ceil(left)} s` : `${Math.ceil(left / 60)} min`;
  change(item, 'working', `${Math.floor(done * 100)} %, about ${time} left`);
}

function finish(item: Item, state: Item['state'], text: string): void {
  change(item, state, text);
  get('#news').textContent = `${item.file.name}: ${text}`;
  if (state === 'done' && !shown) show(item);
  next();
}

function next(): void {
  const item = items.find(({ state }) => state === 'waiting');
  if (!ready || current() || !item) return;
  item.started = performance.now();
  change(item, 'working', 'Starting');
  ask(worker!, { kind: 'upscale', file: item.file });
}

function change(item: Item, state: Item['state'], text: string): void {
  const over = state === 'done' || state === 'failed';
  [item.state, item.row.className] = [state, state];
  get('.state', item.row).textContent = text;
  get('progress', item.row).hidden = over;
  for (const name of ['.show', '.save']) get(name, item.row).hidden = state !== 'done';
  get('.stop', item.row).textContent = over ? 'Remove' : 'Cancel';
  get<HTMLButtonElement>('#all').disabled = !items.some(({ picture }) => picture);
}

function add(files: Iterable<File>): void {
  for (const file of files) {
    const row = get<HTMLTemplateElement>('#row').content.firstElementChild!.cloneNode(true) as HTMLLIElement;
    const urls = [URL.createObjectURL(file)];
    const item: Item = { file, row, urls, state: 'waiting', width: 0, height: 0, scale: 1, started: 0 };
    get('strong', row).textContent = file.name;
    get<HTMLImageElement>('.thumb', row).src = item.urls[0];
    for (const [name, act] of [['.show', compare], ['.save', save], ['.stop', remove]] as const) {
      get(name, row).onclick = () => void act(item);
      get(name, row).setAttribute('aria-description', file.name);
    }
    items.push(item);
    get('#list').append(row);
    change(item, 'waiting', 'Waiting');
  }
  get('#pictures').hidden = !items.length;
  document.body.classList.toggle('busy', items.length > 0);
  next();
}

function remove(item: Item): void {
  items = items.filter((other) => other !== item);
  item.row.remove();
  item.urls.forEach(URL.revokeObjectURL);
  if (item === shown) [shown, viewer.hidden] = [undefined, true];
  if (item.state === 'working') restart(); // nothing else stops a model at once
  add([]);
}

function show(item: Item): void {
  [shown, viewer.hidden, get('#shown').textContent] = [item, false, item.file.name];
  ['.before', '.after'].forEach((name, i) => (get<HTMLImageElement>(name).src = item.urls[i]));
  draw();
}

const compare = (item: Item) => (show(item), viewer.scrollIntoView());

/** Lay out the comparison. At 1:1 a pixel of the result is a pixel of the screen. */
function draw(): void {
  if (!shown) return;
  const fit = Math.min(stage.clientWidth / shown.width, (innerHeight * 0.7) / shown.height, 4);
  const factor = zoom ? zoom / devicePixelRatio : fit;
  Object.assign(sheet.style, { width: `${shown.width * factor}px`, height: `${shown.height * factor}px` });
  sheet.classList.toggle('close', zoom > 1);
  const at = (stage.clientWidth * Number(split.value)) / 100;
  line.style.left = `${at}px`;
  get('.before').style.clipPath = `inset(0 calc(100% - ${at - sheet.offsetLeft + stage.scrollLeft}px) 0 0)`;
}

/** The result in the chosen format; a worker of its own encodes it. */
async function encoded(item: Item): Promise<Blob> {
  if (formatBox.value === 'image/png') return item.picture!;
  const helper = start();
  const answer = new Promise<Tell>((resolve) => (helper.onmessage = ({ data }) => resolve(data)));
  ask(helper, { kind: 'encode', picture: item.picture!, type: formatBox.value });
  const told = await answer;
  helper.terminate();
  if (told.kind === 'encoded') return told.picture;
  throw new Error('This browser cannot save it in this format. Save it as PNG.');
}

function nameOf(item: Item, taken: string[] = []): string {
  const base = `${item.file.name.replace(/\.[^.]*$/, '')}_${item.scale}x`;
  const suffix = { 'image/png': '.png', 'image/webp': '.webp' }[formatBox.value] ?? '.jpg';
  const names = [base + suffix, ...items.map((_, i) => `${base}-${i + 2}${suffix}`)];
  return names.find((name) => !taken.includes(name))!;
}

async function save(...chosen: Item[]): Promise<void> {
  try {
    const files: [string, Blob][] = [];
    for (const item of chosen) files.push([nameOf(item, files.map(([name]) => name)), await encoded(item)]);
    const [name, content] = chosen.length > 1 ? ['pictures.zip', await zip(files)] as const : files[0];
    const href = URL.createObjectURL(content);
    Object.assign(document.createElement('a'), { href, download: name }).click();
    setTimeout(() => URL.revokeObjectURL(href), 60_000);
  } catch (error) {
    state.textContent = (error as Error).message;
  }
}

/** Reload the page once, through the service worker: it keeps the files, and lets the page use threads. */
async function install(): Promise<void> {
  const isNew = !navigator.serviceWorker.controller;
  await navigator.serviceWorker.register('./sw.js');
  await navigator.serviceWorker.ready;
  if (!isNew || items.length || sessionStorage.reloaded) return;
  sessionStorage.reloaded = 'yes';
  location.reload();
}

modelBox.onchange = deviceBox.onchange = () => {
  localStorage.device = deviceBox.value;
  restart();
};
get<HTMLInputElement>('#files').onchange = ({ target }) => {
  const box = target as HTMLInputElement;
  add([...box.files!]);
  box.value = '';
};
get('#all').onclick = () => void save(...items.filter(({ picture }) => picture));
document.onpaste = ({ clipboardData }) => add(clipboardData!.files);
document.ondragover = document.ondragleave = document.ondrop = (event: DragEvent) => {
  event.preventDefault();
  drop.classList.toggle('over', event.type === 'dragover');
  if (event.type === 'drop') add(event.dataTransfer!.files);
};
get('.zoom').onclick = ({ target }) => {
  if (!(target instanceof HTMLButtonElement)) return;
  zoom = Number(target.value);
  for (const button of target.parentElement!.children) button.setAttribute('aria-pressed', `${button === target}`);
  draw();
};
line.onpointerdown = ({ pointerId }) => line.setPointerCapture(pointerId);
line.onpointermove = ({ buttons, clientX }) => {
  if (buttons) split.value = `${(100 * (clientX - stage.getBoundingClientRect().left)) / stage.clientWidth}`;
  draw();
};
split.oninput = stage.onscroll = window.onresize = draw;

const titled = ({ name, scale }: Model) => (name.includes(`${scale}x`) ? name : `${name} (${scale}x)`);
deviceBox.value = localStorage.device ?? 'auto';
modelBox.append(...models.map((each) => new Option(titled(each), each.name)));
restart();
if ('serviceWorker' in navigator) void install();
