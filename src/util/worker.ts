/** How worker threads are started from compiled code and from the sources alike. Used by sql/parser and server/changes. */
import { Worker, type WorkerOptions } from 'node:worker_threads';

/**
 * Starts `name`-worker beside the module at `url`. Compiled code runs compiled code; from the sources (tests) the worker first needs a
 * loader that knows TypeScript.
 */
export function startWorker(url: string, name: string, options: WorkerOptions): Worker {
  if (!url.endsWith('.ts')) return new Worker(new URL(`./${name}-worker.js`, url), options);
  const { href } = new URL(`./${name}-worker.ts`, url);
  const code = `import('tsx/esm/api').then((tsx) => (tsx.register(), import('${href}')))`;
  return new Worker(code, { ...options, eval: true });
}
