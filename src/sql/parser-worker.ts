/**
 * The real Postgres parser (libpg-query) in a worker thread. A text can crash it, make it run for long or exhaust its
 * stack, so it never runs beside the data path. Sent: { id, sql }. Answered: { id, syntax }. See sql/parser.
 */
import { parentPort } from 'node:worker_threads';
import { loadModule, parseSync } from 'libpg-query';
import type { Kind, Syntax } from './parser.ts';
import { readingOf } from './reading.ts';

type Tree = { [key: string]: unknown };

await loadModule();
parentPort!.on('message', ({ id, sql }: { id: number; sql: string }) => {
  parentPort!.postMessage({ id, syntax: read(sql) });
});
parentPort!.postMessage({ id: 0, syntax: null });

function read(sql: string): Syntax {
  const syntax: Syntax = {
    isParsed: true,
    functions: [],
    isTemporary: false,
    count: 1,
    isOpaque: false,
    kind: 'other',
    tables: [],
    reading: null,
  };
  try {
    const tree = parseSync(sql);
    // What is written is met both as the target of a statement and as a table: the first word on it stands.
    const seen = new Set<unknown>();
    walk(tree, (key, value) => {
      look(key, value, syntax);
      lookForTables(key, value, syntax, seen);
    });
    syntax.kind = kindOf(tree as unknown as Tree);
    syntax.reading = readingOf(tree);
    syntax.count = tree.stmts?.length ?? 0;
  } catch {
    syntax.isParsed = false;
  }
  syntax.functions = [...new Set(syntax.functions)];
  return syntax;
}

/** Visits every node, outer ones first, without recursion: trees can be as deep as the text is long. */
function walk(root: unknown, visit: (key: string, value: Tree) => void): void {
  const stack: unknown[] = [root];
  while (stack.length > 0) {
    const node = stack.pop();
    if (typeof node !== 'object' || node === null) continue;
    for (const [key, value] of Object.entries(node)) {
      visit(key, value as Tree);
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

function lookForTables(key: string, value: Tree, syntax: Syntax, seen: Set<unknown>): void {
  const add = (table: unknown, isWritten: boolean) => {
    const { relname, schemaname } = (table ?? {}) as { relname?: string; schemaname?: string };
    if (relname === undefined || seen.has(table)) return;
    seen.add(table);
    syntax.tables.push({ schema: schemaname ?? '', name: relname, isWritten });
  };
  switch (key) {
    case 'InsertStmt':
    case 'UpdateStmt':
    case 'DeleteStmt':
    case 'MergeStmt':
      add(value.relation, true);
      break;
    case 'CopyStmt':
      add(value.relation, value.is_from === true);
      break;
    case 'TruncateStmt':
    case 'LockStmt':
      for (const relation of (value.relations ?? []) as Tree[]) add(relation.RangeVar, true);
      break;
    case 'SelectStmt':
      // FOR UPDATE locks the rows of all tables that the query names itself.
      if (value.lockingClause !== undefined)
        walk(value.fromClause, (inner, table) => inner === 'RangeVar' && add(table, true));
      break;
    case 'DropStmt':
      for (const object of (value.objects ?? []) as Tree[]) {
        const names = namesOf(((object.List as Tree | undefined)?.items ?? []) as unknown[]);
        if (names.length > 0) add({ relname: names.at(-1), schemaname: names.at(-2) }, true);
      }
      break;
    case 'RangeVar':
    case 'relation':
    case 'rel':
      add(value, false);
      break;
    default:
  }
}

const strength: readonly Kind[] = ['other', 'read', 'write', 'ddl'];
const writing = new Set(['InsertStmt', 'UpdateStmt', 'DeleteStmt', 'MergeStmt', 'TruncateStmt', 'LockStmt']);
const defining =
  /^(Create|Alter|Drop|Rename|Comment|Index|View|Rule|Define|Grant|Reindex|Refresh|SecLabel|Reassign|Import|CompositeType).*Stmt$/;

/** The kind of the strongest statement of a text; one in another (WITH … INSERT, EXPLAIN, PREPARE) counts as well. */
function kindOf(tree: Tree): Kind {
  let found: Kind = 'other';
  const count = (kind: Kind) => {
    if (strength.indexOf(kind) > strength.indexOf(found)) found = kind;
  };
  walk(tree, (key, value) => {
    if (writing.has(key)) count('write');
    else if (key === 'SelectStmt') {
      count(value.lockingClause === undefined ? 'read' : 'write');
      if (value.intoClause !== undefined) count('ddl');
    } else if (key === 'CopyStmt') count(value.is_from === true ? 'write' : 'read');
    else if (defining.test(key)) count('ddl');
  });
  return found;
}

/** A possibly qualified name, dotted; pg_catalog is left out. */
function nameOf(parts: unknown[]): string {
  const names = namesOf(parts);
  return (names[0] === 'pg_catalog' ? names.slice(1) : names).join('.');
}

function namesOf(parts: unknown[]): string[] {
  return parts.map((part) => (part as { String?: { sval?: string } }).String?.sval ?? '');
}
