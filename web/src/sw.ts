// The service worker: keeps the page for use without a network, and isolates it, which
// threads need. Static hosts cannot set these headers.

const FILES = 'FILES_OF_THE_PAGE'.split(',');
const CACHE = 'aethernet';
const scope = self as unknown as ServiceWorkerGlobalScope;

const HEADERS = {
  'Cross-Origin-Opener-Policy': 'same-origin',
  'Cross-Origin-Embedder-Policy': 'require-corp',
  'Cross-Origin-Resource-Policy': 'same-origin',
};

scope.addEventListener('install', () => void scope.skipWaiting());
scope.addEventListener('activate', (event) => event.waitUntil(scope.clients.claim()));
// The page asks for it once a model is loaded, with the names of all files that it has
// loaded, and what those that it may load begin with.
scope.addEventListener('message', (event) => event.waitUntil(keep(event.data)));
scope.addEventListener('fetch', (event) => {
  const isOurs = event.request.method === 'GET' && event.request.url.startsWith(scope.registration.scope);
  if (isOurs) event.respondWith(answer(event.request));
});

/** Keep what is missing, and forget what the page does not use any more. */
async function keep({ loaded, used }: { loaded: string[]; used: string[] }): Promise<void> {
  const cache = await caches.open(CACHE);
  const wanted = ['./', 'models.json', ...FILES, ...loaded].map(address);
  const held = (await cache.keys()).map((request) => request.url);
  const isUsed = (url: string) => wanted.includes(url) || used.some((name) => url.startsWith(address(name)));
  const old = held.filter((url) => !isUsed(url));
  await Promise.all(old.map((url) => cache.delete(url)));
  for (const url of wanted) if (!held.includes(url)) await cache.add(url);
}

const address = (name: string) => new URL(name, scope.registration.scope).href;

async function answer(request: Request): Promise<Response> {
  const cache = await caches.open(CACHE);
  const key = request.mode === 'navigate' ? address('./') : request.url;
  const kept = await cache.match(key);
  // All other names change with their content.
  const changes = request.mode === 'navigate' || request.url === address('models.json');
  if (kept && !changes) return isolated(kept);
  try {
    const response = await fetch(request);
    if (response.type === 'opaqueredirect') return response;
    if (response.ok) await cache.put(key, response.clone());
    return isolated(response);
  } catch (error) {
    if (kept) return isolated(kept);
    throw error;
  }
}

function isolated(response: Response): Response {
  const headers = new Headers(response.headers);
  for (const [name, value] of Object.entries(HEADERS)) headers.set(name, value);
  return new Response(response.body, { status: response.status, statusText: response.statusText, headers });
}
