// The service worker: keeps the page for use without a network, and isolates it, which
// threads need. Static hosts cannot set these headers.

const CACHE = 'aethernet';
const scope = self as unknown as ServiceWorkerGlobalScope;

scope.addEventListener('install', () => void scope.skipWaiting());
scope.addEventListener('activate', (event) => event.waitUntil(scope.clients.claim()));
scope.addEventListener('fetch', (event) => {
  const isOurs = event.request.method === 'GET' && event.request.url.startsWith(scope.registration.scope);
  if (isOurs) event.respondWith(answer(event.request));
});

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
    if (response.ok) {
      const isNew = changes && kept && (await kept.clone().text()) !== (await response.clone().text());
      if (isNew) await forget(request.mode === 'navigate' ? './' : 'models/');
      await cache.put(key, response.clone());
    }
    return isolated(response);
  } catch (error) {
    if (kept) return isolated(kept);
    throw error;
  }
}

/** Remove the files whose names begin so: the page, or its list of models, has changed. */
async function forget(start: string): Promise<void> {
  const cache = await caches.open(CACHE);
  const old = (await cache.keys()).filter(({ url }) => url.startsWith(address(start)));
  await Promise.all(old.map((request) => cache.delete(request)));
}

function isolated(response: Response): Response {
  const headers = new Headers(response.headers);
  headers.set('Cross-Origin-Opener-Policy', 'same-origin');
  headers.set('Cross-Origin-Embedder-Policy', 'require-corp');
  headers.set('Cross-Origin-Resource-Policy', 'same-origin');
  return new Response(response.body, { status: response.status, statusText: response.statusText, headers });
}
