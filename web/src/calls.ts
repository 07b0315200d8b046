// The page and its workers call each other's functions.
import { createBirpc } from 'birpc';
import { refusal } from './model';

/** The functions at the other end, which may call `own`. They fail when a worker does not start. */
export function connect<Theirs extends object>(port: Worker | typeof self, own: object = {}) {
  const theirs = createBirpc<Theirs>(own as Record<string, unknown>, {
    post: (data) => port.postMessage(data),
    on: (hear) => (port.onmessage = ({ data }) => hear(data)),
    timeout: -1,
  });
  port.onerror = () => theirs.$close(refusal('This browser cannot run the page.'));
  return theirs;
}
