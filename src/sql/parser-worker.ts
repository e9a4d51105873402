/**
 * The real Postgres parser (libpg-query) in a worker thread. A text can crash it, make it run for long or exhaust its
 * stack, so it never runs beside the data path. Sent: { id, sql }. Answered: { id, syntax }. See sql/parser.
 */
import { parentPort } from 'node:worker_threads';
import { loadModule, parseSync } from 'libpg-query';
import type { Syntax } from './parser.ts';

type Tree = { [key: string]: unknown };

await loadModule();
parentPort!.on('message', ({ id, sql }: { id: number; sql: string }) => {
  parentPort!.postMessage({ id, syntax: read(sql) });
});
parentPort!.postMessage({ id: 0, syntax: null });

function read(sql: string): Syntax {
  const syntax: Syntax = { isParsed: true, functions: [], isTemporary: false, isOpaque: false };
  try {
    walk(parseSync(sql), syntax);
  } catch {
    syntax.isParsed = false;
  }
  syntax.functions = [...new Set(syntax.functions)];
  return syntax;
}

/** Visits every node without recursion: trees can be as deep as the text is long. */
function walk(root: unknown, syntax: Syntax): void {
  const stack: unknown[] = [root];
  while (stack.length > 0) {
    const node = stack.pop();
    if (typeof node !== 'object' || node === null) continue;
    for (const [key, value] of Object.entries(node)) {
      look(key, value as Tree, syntax);
      stack.push(value);
    }
  }
}

function look(key: string, value: Tree, syntax: Syntax): void {
  switch (key) {
    case 'FuncCall':
    case 'funccall':
      if (Array.isArray(value.funcname)) syntax.functions.push(nameOf(value.funcname));
      break;
    case 'DoStmt':
      syntax.isOpaque = true;
      break;
    case 'relpersistence':
      if ((value as unknown) === 't') syntax.isTemporary = true;
      break;
    case 'schemaname':
      if ((value as unknown) === 'pg_temp') syntax.isTemporary = true;
      break;
    default:
  }
}

/** A possibly qualified name, dotted; pg_catalog is left out. */
function nameOf(parts: unknown[]): string {
  const names = parts.map((part) => (part as { String?: { sval?: string } }).String?.sval ?? '');
  return (names[0] === 'pg_catalog' ? names.slice(1) : names).join('.');
}
