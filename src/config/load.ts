/**
 * From a YAML file and the environment to a Config, or to a list of problems of the form
 * `file:line:col: path: message`. Called by cli (check) and app (start, reload). Pure but for reading the file.
 *
 * Order: file, then `${VAR}` inside values, then overrides `PGWEIR_LISTEN__PORT=…` (path joined by two underscores),
 * then the schema with its defaults.
 */
import { readFileSync } from 'node:fs';
import { type Document, isMap, isPair, isScalar, LineCounter, type Node, type Pair, parseDocument } from 'yaml';
import { messageOf } from '../util/errors.ts';
import { type Config, configSchema, jsonSchema, laterKeys, laterValues } from './schema.ts';

export type Loaded = { ok: true; config: Config } | { ok: false; problems: string[] };
type Path = readonly PropertyKey[];
type Environment = Readonly<Record<string, string | undefined>>;

const PREFIX = 'PGWEIR_';
/** What Kubernetes puts into the environment of every pod beside a Service that is named pgweir. */
const SERVICE_LINKS = /^PGWEIR_(SERVICE_HOST|SERVICE_PORT.*|PORT|PORT_\d+_.*)$/;

/** Loads the file at `file`; relative paths inside it are left as they are. */
export function loadConfig(file: string, environment: Environment): Loaded {
  let text: string;
  try {
    text = readFileSync(file, 'utf8');
  } catch (thrown) {
    return { ok: false, problems: [`${file}:1:1: cannot be read: ${messageOf(thrown)}`] };
  }
  return parseConfig(text, file, environment);
}

/** Like `loadConfig`, for text; `file` is only its name in messages. */
export function parseConfig(text: string, file: string, environment: Environment): Loaded {
  try {
    return parse(text, file, environment);
  } catch (thrown) {
    // An alias without its anchor, a value where a map should be: what yaml finds out only when asked for the value.
    return { ok: false, problems: [`${file}:1:1: ${messageOf(thrown)}`] };
  }
}

function parse(text: string, file: string, environment: Environment): Loaded {
  const lines = new LineCounter();
  const document = parseDocument(text, { lineCounter: lines, prettyErrors: false });
  const at = (offset: number, path: Path, message: string) => {
    const { line, col } = lines.linePos(offset);
    return `${file}:${line}:${col}: ${path.length === 0 ? '' : `${path.map(String).join('.')}: `}${message}`;
  };
  if (document.errors.length > 0) {
    return { ok: false, problems: document.errors.map((error) => at(error.pos[0], [], error.message)) };
  }
  if (document.contents !== null && !isMap(document.contents)) {
    return { ok: false, problems: [at(0, [], 'expected keys like "listen:" and "databases:"')] };
  }
  const problems: string[] = [];
  const value = expand((document.toJS() ?? {}) as Json, environment, [], (path, message) =>
    problems.push(at(offsetOf(document, path), path, message)),
  );
  override(value as JsonObject, environment, (message) => problems.push(message));
  for (const path of findLater(value)) {
    problems.push(at(offsetOf(document, path), path, 'not supported yet by this version'));
  }
  const result = configSchema.safeParse(withoutLater(value));
  for (const issue of result.error?.issues ?? []) {
    for (const [path, message] of explain(issue)) problems.push(at(offsetOf(document, path), path, message));
  }
  return problems.length === 0 && result.success ? { ok: true, config: result.data } : { ok: false, problems };
}

type Json = string | number | boolean | null | Json[] | JsonObject;
type JsonObject = { [key: string]: Json };
type Issue = { path: PropertyKey[]; message: string; code?: string; keys?: string[]; errors?: Issue[][] };

/** The path and message of each thing that an issue of zod says. */
function explain(issue: unknown): [Path, string][] {
  const { path, message, code, keys, errors } = issue as Issue;
  if (code === 'unrecognized_keys') return keys!.map((key) => [[...path, key], 'unknown key']);
  if (code === 'invalid_union') {
    // Of the alternatives, explain the one that got furthest.
    const depth = (issues: Issue[]) =>
      Math.max(...issues.map((each) => each.path.length + (each.keys === undefined ? 0 : 1)));
    const furthest = errors!.reduce((a, b) => (depth(b) > depth(a) ? b : a));
    return furthest.flatMap((each) => explain({ ...each, path: [...path, ...each.path] }));
  }
  return [[path, message]];
}

/** Where in the text the key (or item) at `path` stands; the nearest parent when it is not there. */
function offsetOf(document: Document, path: Path): number {
  for (let depth = path.length; depth > 0; depth--) {
    const parent = depth === 1 ? document.contents : document.getIn(path.slice(0, depth - 1), true);
    const pair = isMap(parent)
      ? parent.items.find((item) => isPair(item) && keyOf(item) === String(path[depth - 1]))
      : null;
    const node = (pair?.key ?? document.getIn(path.slice(0, depth), true)) as Node | undefined;
    if (node?.range) return node.range[0];
  }
  return 0;
}

function keyOf(pair: Pair): string {
  return String(isScalar(pair.key) ? pair.key.value : pair.key);
}

/** Replaces `${VAR}` in strings. A value that is nothing but one variable is read as YAML would read it. */
function expand(
  value: Json,
  environment: Environment,
  path: Path,
  complain: (path: Path, message: string) => void,
): Json {
  if (Array.isArray(value)) return value.map((item, index) => expand(item, environment, [...path, index], complain));
  if (typeof value === 'object' && value !== null) {
    const entries = Object.entries(value).map(([key, item]) => [
      key,
      expand(item, environment, [...path, key], complain),
    ]);
    return Object.fromEntries(entries) as JsonObject;
  }
  if (typeof value !== 'string' || !value.includes('${')) return value;
  const expanded = value.replace(/\$\{(\w+)\}/g, (_, name: string) => {
    const found = environment[name];
    if (found === undefined) complain(path, `the environment variable ${name} is not set`);
    return found ?? '';
  });
  return /^\$\{\w+\}$/.test(value) ? plain(expanded) : expanded;
}

/** Reads text as a YAML scalar: numbers and booleans become such. */
function plain(text: string): Json {
  return parseDocument(text).toJS() as Json;
}

/** Applies `PGWEIR_A__B=value` to the key a.b; words inside a key may be joined by one underscore. */
function override(value: JsonObject, environment: Environment, complain: (message: string) => void): void {
  for (const [name, text] of Object.entries(environment)) {
    if (!name.startsWith(PREFIX) || text === undefined || SERVICE_LINKS.test(name)) continue;
    const path = pathOf(name, value);
    if (path === null) {
      complain(`environment:1:1: ${name}: no key of the configuration has this name`);
      continue;
    }
    let parent = value;
    for (const key of path.slice(0, -1)) {
      parent[key] ??= {};
      parent = parent[key] as JsonObject;
    }
    parent[path.at(-1)!] = plain(text);
  }
}

/** The path that an environment name means: known keys by the schema's spelling, other names by what the file has. */
function pathOf(name: string, value: JsonObject): string[] | null {
  const path: string[] = [];
  let shape: SchemaNode | undefined = jsonSchema() as SchemaNode;
  let present: Json | undefined = value;
  for (const word of name.slice(PREFIX.length).split('__')) {
    const same = (key: string) =>
      key.replaceAll(/[^A-Za-z0-9*]/g, '').toUpperCase() === word.replaceAll('_', '').toUpperCase();
    const known: string | undefined = Object.keys(shape?.properties ?? {}).find(same);
    const inFile: string | undefined = Object.keys((present as JsonObject | undefined) ?? {}).find(same);
    const key: string | undefined = known ?? (shape?.additionalProperties ? (inFile ?? word.toLowerCase()) : undefined);
    if (key === undefined) return null;
    path.push(key);
    shape = known === undefined ? (shape?.additionalProperties as SchemaNode) : shape?.properties?.[known];
    present = (present as JsonObject | undefined)?.[key];
  }
  return path;
}

interface SchemaNode {
  properties?: Record<string, SchemaNode>;
  additionalProperties?: SchemaNode | boolean;
}

/** Paths of keys and values that belong to a later version. */
function findLater(value: Json): Path[] {
  const keys = laterKeys.flatMap((pattern) => match(value, pattern.split('.')));
  const values = Object.entries(laterValues).flatMap(([pattern, later]) =>
    match(value, pattern.split('.')).filter((path) => later.includes(String(get(value, path)))),
  );
  return [...keys, ...values];
}

function match(value: Json | undefined, pattern: readonly string[], path: string[] = []): string[][] {
  const [key, ...rest] = pattern;
  if (key === undefined) return [path];
  if (typeof value !== 'object' || value === null) return [];
  const keys = key === '*' ? Object.keys(value) : key in value ? [key] : [];
  return keys.flatMap((name) => match((value as JsonObject)[name], rest, [...path, name]));
}

function get(value: Json, path: Path): Json | undefined {
  return path.reduce<Json | undefined>((node, key) => (node as JsonObject | undefined)?.[String(key)], value);
}

/** A copy without what `findLater` reports, so that each is reported once. */
function withoutLater(value: Json): Json {
  const copy = structuredClone(value);
  for (const path of findLater(value)) {
    const parent = get(copy, path.slice(0, -1)) as JsonObject;
    if (!Array.isArray(parent)) delete parent[String(path.at(-1))];
  }
  return copy;
}
