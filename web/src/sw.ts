// The service worker: keeps the page for use without a network, and isolates it, which
// threads need. Static hosts cannot set these headers.

const scope = self as unknown as ServiceWorkerGlobalScope;
const home = scope.registration.scope;

scope.addEventListener('install', () => void scope.skipWaiting());
scope.addEventListener('activate', (event) => event.waitUntil(scope.clients.claim()));
scope.addEventListener('fetch', (event) => {
  const { method, url } = event.request;
  if (method === 'GET' && url.startsWith(home)) event.respondWith(answer(event.request));
});

async function answer(request: Request): Promise<Response> {
  const cache = await caches.open('aethernet');
  const isPage = request.mode === 'navigate';
  const key = isPage ? home : request.url;
  const kept = await cache.match(key);
  // All other names change with their content.
  if (kept && !isPage && key !== `${home}models.json`) return isolated(kept);
  const response = await fetch(request).catch((error) => kept ?? Promise.reject(error));
  if (response.type === 'opaqueredirect') return response;
  if (response.ok && response !== kept) {
    const isNew = kept && (await kept.text()) !== (await response.clone().text());
    const isOld = ({ url }: Request) => isNew && url.startsWith(isPage ? home : `${home}models/`);
    await Promise.all((await cache.keys()).filter(isOld).map((request) => cache.delete(request)));
    await cache.put(key, response.clone());
  }
  return isolated(response);
}

function isolated(response: Response): Response {
  const headers = new Headers(response.headers);
  headers.set('Cross-Origin-Opener-Policy', 'same-origin');
  headers.set('Cross-Origin-Embedder-Policy', 'require-corp');
  headers.set('Cross-Origin-Resource-Policy', 'same-origin');
  return new Response(response.body, { status: response.status, statusText: response.statusText, headers });
}
