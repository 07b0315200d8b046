// The page: what is chosen, the list of pictures, the comparison, and what is saved.
import { downloadZip } from 'client-zip';
import { connect } from './calls';
import type { Device, Model } from './model';
import type { Work } from './worker';

interface Item {
  file: File;
  row: HTMLLIElement;
  /** Addresses of the source and of the result. */
  urls: string[];
  state: 'waiting' | 'working' | 'done' | 'failed';
  started: number;
  result?: Awaited<ReturnType<Work['upscale']>>;
}

const get = <T extends HTMLElement>(query: string, from: ParentNode = document) => from.querySelector<T>(query)!;
const [modelBox, deviceBox, formatBox] = ['#model', '#device', '#format'].map((id) => get<HTMLSelectElement>(id));
const [viewer, stage, sheet, line] = ['#viewer', '.stage', '.sheet', '.line'].map((query) => get(query));
const [drop, state, zoomBox] = ['#drop', '#engine', '.zoom'].map((query) => get(query));
const [filesBox, split] = ['#files', '#split'].map((id) => get<HTMLInputElement>(id));
const models: Model[] = await (await fetch('./models.json')).json();
let items: Item[] = [];
let shown: Item | undefined;
let worker: Worker | undefined;
let work: ReturnType<typeof connect<Work>>;
let engine = ''; // of a worker that is ready

const start = () => new Worker(new URL('./worker.ts', import.meta.url), { type: 'module' });
const current = () => items.find((item) => item.state === 'working');
const model = () => models[modelBox.selectedIndex];
const isRefusal = (error: unknown) => (error as Error).name === 'Refusal';
const said = (error: unknown) => (isRefusal(error) ? (error as Error).message : `Something went wrong: ${error}`);

/** What the worker may call. */
const page = { progress, lost: () => restart('wasm', 'The graphics card stopped working.') };
export type Page = typeof page;

/** Start a worker with the chosen model; what another one worked on waits again. */
async function restart(device = deviceBox.value as Device, ...notes: string[]): Promise<void> {
  worker?.terminate();
  for (const item of items) if (item.state === 'working') change(item, 'waiting', 'Waiting');
  engine = '';
  state.textContent = `Loading ${model().name} …`;
  worker = start();
  work = connect<Work>(worker, page);
  try {
    const [opened, ...more] = await work.load(new URL('./', location.href).href, model(), device);
    engine = opened;
    state.textContent = [`Runs on: ${engine}.`, ...notes, ...more].join(' ');
    void next();
  } catch (error) {
    state.textContent = said(error);
  }
}

function progress(done: number): void {
  const item = current();
  if (!item) return;
  get<HTMLProgressElement>('progress', item.row).value = done;
  const left = ((performance.now() - item.started) * (1 - done)) / done / 1000;
  const time = left < 90 ? `${Math.ceil(left)} s` : `${Math.ceil(left / 60)} min`;
  change(item, 'working', `${Math.floor(done * 100)} %, about ${time} left`);
}

/** Enlarge the pictures that wait, one after another. */
async function next(): Promise<void> {
  get<HTMLButtonElement>('#all').disabled = !items.some(({ result }) => result);
  const item = items.find(({ state }) => state === 'waiting');
  if (!engine || current() || !item) return;
  item.started = performance.now();
  change(item, 'working', 'Starting');
  try {
    item.result = await work.upscale(item.file);
    const { picture, width, height, scale, notes } = item.result;
    item.urls.push(URL.createObjectURL(picture));
    const sizes = `${width / scale} × ${height / scale} → ${width} × ${height}`;
    change(item, 'done', [sizes, ...notes].join('. '));
    if (!shown) show(item);
  } catch (error) {
    // A card that stops fails the picture first: the processor tries it again.
    if (engine.startsWith('Graphics') && !isRefusal(error)) return page.lost();
    change(item, 'failed', said(error));
  }
  get('#news').textContent = `${item.file.name}: ${get('.state', item.row).textContent}`;
  void next();
}

function change(item: Item, state: Item['state'], text: string): void {
  [item.state, item.row.className] = [state, state];
  get('.state', item.row).textContent = text;
  get('.stop', item.row).textContent = state === 'done' || state === 'failed' ? 'Remove' : 'Cancel';
}

function add(files: Iterable<File>): void {
  for (const file of files) {
    const row = get<HTMLTemplateElement>('#row').content.firstElementChild!.cloneNode(true) as HTMLLIElement;
    const item: Item = { file, row, urls: [URL.createObjectURL(file)], state: 'waiting', started: 0 };
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
  void next();
}

function remove(item: Item): void {
  items = items.filter((other) => other !== item);
  item.row.remove();
  item.urls.forEach(URL.revokeObjectURL);
  if (item === shown) [shown, viewer.hidden] = [undefined, true];
  if (item.state === 'working') void restart(); // nothing else stops a model at once
  void next();
}

function show(item: Item): void {
  [shown, viewer.hidden, get('#shown').textContent] = [item, false, item.file.name];
  ['.before', '.after'].forEach((name, i) => (get<HTMLImageElement>(name).src = item.urls[i]));
  draw();
}

const compare = (item: Item) => (show(item), viewer.scrollIntoView());

/** Lay out the comparison. At 1:1 a pixel of the result is a pixel of the screen. */
function draw(): void {
  if (!shown?.result) return;
  const { width, height } = shown.result;
  const fit = Math.min(stage.clientWidth / width, (innerHeight * 0.7) / height, 4);
  const zoom = Number(get<HTMLInputElement>(':checked', zoomBox).value);
  const factor = zoom ? zoom / devicePixelRatio : fit;
  Object.assign(sheet.style, { width: `${width * factor}px`, height: `${height * factor}px` });
  const at = (stage.clientWidth * Number(split.value)) / 100;
  line.style.left = `${at}px`;
  get('.before').style.clipPath = `inset(0 calc(100% - ${at - sheet.offsetLeft + stage.scrollLeft}px) 0 0)`;
}

/** The result in the chosen format; a worker of its own encodes it. */
function encoded(picture: Blob): Blob | Promise<Blob> {
  if (formatBox.value === 'image/png') return picture;
  const helper = start();
  return connect<Work>(helper).encode(picture, formatBox.value).finally(() => helper.terminate());
}

async function save(...chosen: Item[]): Promise<void> {
  try {
    const files: File[] = [];
    for (const { file, result } of chosen) {
      const base = `${file.name.replace(/\.[^.]*$/, '')}_${result!.scale}x`;
      const suffix = formatBox.value.replace('image/', '.').replace('jpeg', 'jpg');
      const isTaken = files.some(({ name }) => name === base + suffix);
      const name = base + (isTaken ? `-${files.length + 1}` : '') + suffix;
      files.push(new File([await encoded(result!.picture)], name));
    }
    const saved = files.length > 1 ? new File([await downloadZip(files).blob()], 'pictures.zip') : files[0];
    const href = URL.createObjectURL(saved);
    Object.assign(document.createElement('a'), { href, download: saved.name }).click();
    setTimeout(() => URL.revokeObjectURL(href), 60_000);
  } catch (error) {
    state.textContent = said(error);
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
  void restart();
};
filesBox.onclick = () => (filesBox.value = ''); // the same pictures may be chosen again
filesBox.onchange = () => add(filesBox.files!);
get('#all').onclick = () => void save(...items.filter(({ result }) => result));
document.onpaste = ({ clipboardData }) => add(clipboardData!.files);
document.ondragover = document.ondragleave = document.ondrop = (event: DragEvent) => {
  event.preventDefault();
  drop.classList.toggle('over', event.type === 'dragover');
  if (event.type === 'drop') add(event.dataTransfer!.files);
};
line.onpointerdown = ({ pointerId }) => line.setPointerCapture(pointerId);
line.onpointermove = ({ buttons, clientX }) => {
  if (buttons) split.value = `${(100 * (clientX - stage.getBoundingClientRect().left)) / stage.clientWidth}`;
  draw();
};
split.oninput = zoomBox.onchange = stage.onscroll = window.onresize = draw;

const titled = ({ name, scale }: Model) => (name.includes(`${scale}x`) ? name : `${name} (${scale}x)`);
deviceBox.value = localStorage.device ?? 'auto';
modelBox.append(...models.map((each) => new Option(titled(each), each.name)));
void restart();
if ('serviceWorker' in navigator) void install();
