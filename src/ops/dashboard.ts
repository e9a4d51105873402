/** The files of the dashboard (src/ops/dashboard), read once. They are served as they are: there is no build step. Called by ops/http. */
import { readFileSync } from 'node:fs';

/** The same place from src/ops and from dist/ops. */
const FOLDER = new URL('../../src/ops/dashboard/', import.meta.url);
const files = {
  '/': ['index.html', 'text/html; charset=utf-8'],
  '/dashboard.css': ['dashboard.css', 'text/css; charset=utf-8'],
  '/dashboard.js': ['dashboard.js', 'text/javascript; charset=utf-8'],
  '/draw.js': ['draw.js', 'text/javascript; charset=utf-8'],
} as const;
const read = new Map<string, Buffer>();

/** The file at this path; null: it is none of them. */
export function pageAt(path: string): { body: Buffer; type: string } | null {
  const file = Object.hasOwn(files, path) ? files[path as keyof typeof files] : null;
  if (file === null) return null;
  const [name, type] = file;
  const body = read.get(name) ?? readFileSync(new URL(name, FOLDER));
  read.set(name, body);
  return { body, type };
}
