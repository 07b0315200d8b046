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
  width: number;
  height: number;
  started: number;
}

const get = <T extends HTMLElement>(query: string, from: ParentNode = document) => from.querySelector<T>(query)!;
const [modelBox, deviceBox, formatBox] = ['#model', '#device', '#format'].map((id) => get<HTMLSelectElement>(id));
const [viewer, stage, sheet, line] = ['#viewer', '.stage', '.sheet', '.line'].map((query) => get(query));
const split = get<HTMLInputElement>('#split');
const root = new URL('./', location.href).href;
let models: Model[] = [];
let items: Item[] = [];
let shown: Item | undefined;
let worker: Worker | undefined;
let ready = false;
let zoom = 0;

const start = () => new Worker(new URL('./worker.ts', import.meta.url), { type: 'module' });
const current = () => items.find((item) => item.state === 'working');
const model = () => models[modelBox.selectedIndex];
const say = (text: string) => void (get('#news').textContent = text);

/** Start a worker with the chosen model; what another one worked on waits again. */
function restart(device = deviceBox.value as Device, notes: string[] = []): void {
  worker?.terminate();
  for (const item of items) if (item.state === 'working') change(item, 'waiting', 'Waiting');
  ready = false;
  worker = start();
  worker.onmessage = ({ data }: MessageEvent<Tell>) => hear(data, notes);
  worker.onerror = () => hear({ kind: 'failed', loading: true, text: 'This browser cannot run the page.' }, notes);
  ask({ kind: 'load', model: model(), device, root });
}

const ask = (message: Ask) => worker!.postMessage(message);

function hear(message: Tell, notes: string[]): void {
  const item = current();
  if (message.kind === 'loading') get('#engine').textContent = message.text;
  else if (message.kind === 'loaded') {
    get('#engine').textContent = [`Runs on: ${message.engine}.`, ...notes, ...message.notes].join(' ');
    ready = true;
    next();
  } else if (message.kind === 'lost') restart('wasm', ['The graphics card stopped working.']);
  else if (message.kind === 'failed' && message.loading) get('#engine').textContent = message.text;
  else if (!item) return;
  else if (message.kind === 'opened') Object.assign(item, { width: message.width, height: message.height });
  else if (message.kind === 'progress') progress(item, message.done);
  else if (message.kind === 'failed') finish(item, 'failed', message.text);
  else if (message.kind === 'done') {
    item.picture = message.picture;
    item.urls[1] = URL.createObjectURL(message.picture);
    const sizes = `${item.width} × ${item.height} → ${message.width} × ${message.height}`;
    [item.width, item.height] = [message.width, message.height];
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
  say(`${item.file.name}: ${text}`);
  if (state === 'done' && (!shown || shown.state !== 'done')) show(item);
  next();
}

function next(): void {
  if (!ready || current()) return;
  const item = items.find(({ state }) => state === 'waiting');
  if (!item) return;
  item.started = performance.now();
  change(item, 'working', 'Starting');
  ask({ kind: 'upscale', file: item.file });
}

function change(item: Item, state: Item['state'], text: string): void {
  item.state = state;
  item.row.className = state;
  get('.state', item.row).textContent = text;
  get('progress', item.row).hidden = state === 'done' || state === 'failed';
  for (const name of ['.show', '.save']) get(name, item.row).hidden = state !== 'done';
  get('.stop', item.row).textContent = state === 'working' || state === 'waiting' ? 'Cancel' : 'Remove';
  get<HTMLButtonElement>('#all').disabled = !items.some((each) => each.picture);
}

function add(files: Iterable<File>): void {
  for (const file of files) {
    const row = get<HTMLTemplateElement>('#row').content.firstElementChild!.cloneNode(true) as HTMLLIElement;
    const item: Item = { file, row, urls: [URL.createObjectURL(file)], state: 'waiting', width: 0, height: 0, started: 0 };
    get('strong', row).textContent = file.name;
    get<HTMLImageElement>('.thumb', row).src = item.urls[0];
    for (const [name, act] of [['.show', show], ['.save', save], ['.stop', remove]] as const) {
      get(name, row).onclick = () => void act(item);
      get(name, row).setAttribute('aria-label', `${get(name, row).textContent} ${file.name}`);
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
  if (item === shown) viewer.hidden = true;
  say(`${item.file.name} is removed.`);
  if (item.state === 'working') restart(); // nothing else stops a model at once
  add([]);
}

function show(item: Item): void {
  shown = item;
  viewer.hidden = false;
  get('#shown').textContent = item.file.name;
  get<HTMLImageElement>('.before').src = item.urls[0];
  get<HTMLImageElement>('.after').src = item.urls[1];
  draw();
}

/** Lay out the comparison. At 1:1 a pixel of the result is a pixel of the screen. */
function draw(): void {
  if (!shown || viewer.hidden) return;
  const fit = Math.min(stage.clientWidth / shown.width, (innerHeight * 0.7) / shown.height, 4);
  const factor = zoom ? zoom / devicePixelRatio : fit;
  sheet.style.width = `${shown.width * factor}px`;
  sheet.style.height = `${shown.height * factor}px`;
  sheet.classList.toggle('close', zoom > 1);
  const at = (stage.clientWidth * Number(split.value)) / 100;
  line.style.left = `${at}px`;
  const left = at - sheet.offsetLeft + stage.scrollLeft;
  get('.before').style.clipPath = `inset(0 calc(100% - ${left}px) 0 0)`;
}

/** The result in the chosen format; a worker of its own encodes it. */
function encoded(item: Item): Promise<Blob> {
  if (formatBox.value === 'image/png') return Promise.resolve(item.picture!);
  const helper = start();
  helper.postMessage({ kind: 'encode', picture: item.picture!, type: formatBox.value } satisfies Ask);
  return new Promise<Blob>((resolve, reject) => {
    helper.onmessage = ({ data }: MessageEvent<Tell>) =>
      data.kind === 'encoded' ? resolve(data.picture) : reject(new Error('It is too large for this format here. Save it as PNG.'));
  }).finally(() => helper.terminate());
}

function nameOf(item: Item, taken: string[] = []): string {
  const base = item.file.name.replace(/\.[^.]*$/, '') + `_${model().scale}x`;
  const suffix = { 'image/png': '.png', 'image/webp': '.webp' }[formatBox.value] ?? '.jpg';
  const names = [base + suffix, ...items.map((_, i) => `${base}-${i + 2}${suffix}`)];
  return names.find((name) => !taken.includes(name))!;
}

async function save(item: Item): Promise<void> {
  try {
    offer(await encoded(item), nameOf(item));
  } catch (error) {
    get('.state', item.row).textContent = (error as Error).message;
  }
}

async function saveAll(): Promise<void> {
  const files: [string, Blob][] = [];
  for (const item of items.filter(({ state }) => state === 'done'))
    files.push([nameOf(item, files.map(([name]) => name)), await encoded(item)]);
  offer(await zip(files), 'pictures.zip');
}

function offer(content: Blob, name: string): void {
  const link = Object.assign(document.createElement('a'), { href: URL.createObjectURL(content), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

/** Keep the page for later, and reload it once if that lets it use threads. */
async function keep(): Promise<void> {
  if (!('serviceWorker' in navigator)) return;
  await navigator.serviceWorker.register('./sw.js');
  const { active } = await navigator.serviceWorker.ready;
  active?.postMessage(models.flatMap(({ file, half }) => (half ? [file, half] : [file])));
  if (crossOriginIsolated || items.length || sessionStorage.reloaded) return;
  sessionStorage.reloaded = 'yes';
  location.reload();
}

modelBox.onchange = deviceBox.onchange = () => restart();
get<HTMLInputElement>('#files').onchange = ({ target }) => {
  const box = target as HTMLInputElement;
  add([...box.files!]);
  box.value = '';
};
get('#all').onclick = () => void saveAll();
document.onpaste = ({ clipboardData }) => add(clipboardData!.files);
document.ondragover = (event) => (event.preventDefault(), get('#drop').classList.add('over'));
document.ondragleave = () => get('#drop').classList.remove('over');
document.ondrop = (event) => (event.preventDefault(), get('#drop').classList.remove('over'), add(event.dataTransfer!.files));
get('.zoom').onclick = ({ target }) => {
  if (!(target instanceof HTMLButtonElement)) return;
  zoom = Number(target.value);
  for (const button of target.parentElement!.children) button.setAttribute('aria-pressed', `${button === target}`);
  draw();
};
line.onpointerdown = ({ pointerId }) => line.setPointerCapture(pointerId);
line.onpointermove = ({ buttons, clientX }) => {
  if (!buttons) return;
  split.value = `${(100 * (clientX - stage.getBoundingClientRect().left)) / stage.clientWidth}`;
  draw();
};
split.oninput = stage.onscroll = window.onresize = draw;

models = await (await fetch('./models.json')).json();
modelBox.append(...models.map(({ name, scale }) => new Option(`${name} (${scale}x)`, name)));
restart();
void keep();
