/**
 * What is known of a statement before and while it runs. Called by client/session for each new text: first the tokens
 * (sql/effects), then, only for shapes that these cannot prove, the parser, memoized by shape.
 *
 * The one idea: the statement need not wait. A verdict may be pending while the statement already runs; until it is
 * known the statement may have any effect, so its server is not released.
 */
import { LRUCache } from 'lru-cache';
import { harmlessFunctions } from './builtins.ts';
import type { Catalog } from './catalog.ts';
import { type Control, controlOf } from './control.ts';
import { type Effects, findEffects, mergeEffects, pinning, probing } from './effects.ts';
import { type Parser, SQL_BYTES_MAX, type Syntax } from './parser.ts';
import { readKey } from './read.ts';
import { cut, numberOf, shapeOf, Tokens } from './shape.ts';
import { tagsOf } from './tags.ts';

const SHAPES_MAX = 10_000;

/** The parser's part of a verdict, shared by all texts of one shape. */
export interface ShapeVerdict {
  state: 'pending' | 'known';
  /** User functions that are called; judged against the catalogue of the session's database. */
  functions: readonly string[];
  effects: Effects | null;
  /** The parser did not take the text: a server that did must be believed to have run anything. */
  isUnparsed: boolean;
  /** Called once, when the verdict is known. */
  waiting: (() => void)[];
}

export interface Verdict {
  /** What the tokens say. */
  effects: Effects | null;
  /** What the parser says, for the few texts that need it. */
  shape: ShapeVerdict | null;
  /** Nothing but COMMIT or END: if its server is lost, its outcome is unknown. */
  isCommit: boolean;
  /** It begins or ends a transaction. */
  control: Control | null;
  /** Tags in a comment at its end (sqlcommenter), when somebody wants to know (`Judge.findsTags`). */
  tags: ReadonlyMap<string, string> | null;
  /** The number of its shape (sql/shape), when somebody wants to know (`Judge.findsNumbers`); else 0. */
  number: number;
  /** A read that may share a server: the number of its shape (sql/read); 0 for everything else. */
  read: number;
}

export const harmless: Verdict = {
  effects: null,
  shape: null,
  isCommit: false,
  control: null,
  tags: null,
  number: 0,
  read: 0,
};
const opaque: Verdict = { ...harmless, effects: pinning('opaque') };
/** The longest text that is cut into tokens; a longer one is opaque. */
export const TEXT_BYTES_MAX = 1024 * 1024;

export class Judge {
  readonly #parser: Parser;
  readonly #tokens = new Tokens();
  readonly #shapes = new LRUCache<string, ShapeVerdict>({ max: SHAPES_MAX });
  /** The text that was judged last. */
  readonly #last = { source: Buffer.alloc(0) as Buffer, start: -1, end: -1, verdict: harmless };
  /** Somebody wants to know which statements are reads that may share a server. */
  findsReads = false;
  /** Somebody wants to know the tags of statements. */
  findsTags = false;
  /** Somebody compares statements with others of their shape. */
  findsNumbers = false;

  constructor(parser: Parser) {
    this.#parser = parser;
  }

  /** Judges the text `source[start, end)`. */
  judge(source: Buffer, start: number, end: number): Verdict {
    // A request is often looked at before it is known how it will run, and again when it does.
    const last = this.#last;
    if (last.source === source && last.start === start && last.end === end) return last.verdict;
    last.source = source;
    last.start = start;
    last.end = end;
    last.verdict = this.#judge(source, start, end);
    return last.verdict;
  }

  #judge(source: Buffer, start: number, end: number): Verdict {
    if (end - start > TEXT_BYTES_MAX) return opaque;
    const tokens = this.#tokens;
    cut(tokens, source, start, end);
    const { effects, unknown, needsParser } = findEffects(tokens);
    const control = controlOf(tokens);
    const isCommit = control !== null && (tokens.is(0, 'commit') || tokens.is(0, 'end'));
    let verdict = control === null ? harmless : { ...harmless, control, isCommit };
    if (unknown.length > 0 || needsParser) {
      verdict = {
        ...verdict,
        effects,
        shape: end - start > SQL_BYTES_MAX ? null : this.#judgeShape(source, start, end, effects !== null),
      };
      if (verdict.shape === null) verdict.effects = mergeEffects(effects, pinning('opaque'));
    } else if (effects !== null) {
      verdict = { ...verdict, effects };
    } else if (verdict === harmless && this.findsReads) {
      const read = readKey(tokens);
      if (read !== 0) verdict = { ...harmless, read };
    }
    const tags = this.findsTags ? tagsOf(source, start, end) : null;
    if (tags !== null) verdict = { ...verdict, tags };
    if (this.findsNumbers) verdict = { ...verdict, number: verdict.read || numberOf(tokens) };
    if (effects !== null && effects.references.length > 0) moveReferences(effects, start);
    tokens.clear();
    return verdict;
  }

  #judgeShape(source: Buffer, start: number, end: number, hasEffects: boolean): ShapeVerdict {
    const key = shapeOf(this.#tokens);
    const known = this.#shapes.get(key);
    if (known !== undefined) return known;
    const verdict: ShapeVerdict = { state: 'pending', functions: [], effects: null, isUnparsed: false, waiting: [] };
    this.#shapes.set(key, verdict);
    this.#parser.parse(source.toString('utf8', start, end), (syntax, isFinal) => {
      if (!isFinal) this.#shapes.delete(key); // Not the text's fault: the next one may try again.
      settle(verdict, syntax, hasEffects);
    });
    return verdict;
  }
}

/** Offsets of references count from the start of the text. */
function moveReferences(effects: Effects, by: number): void {
  effects.references = effects.references.map((one) => ({ ...one, start: one.start - by, end: one.end - by }));
}

/** `hasEffects`: the tokens have found what the text does; otherwise even a known name was written so that they could not. */
function settle(verdict: ShapeVerdict, syntax: Syntax | null, hasEffects: boolean): void {
  verdict.state = 'known';
  if (syntax === null) verdict.effects = pinning('opaque');
  else {
    verdict.isUnparsed = !syntax.isParsed;
    // What has an effect of its own was found by the tokens; what is left may be a user function.
    verdict.functions = syntax.functions.filter(
      (name) => !harmlessFunctions.has(name) && !(hasEffects && isKnownEffect(name)),
    );
    if (syntax.isTemporary) verdict.effects = probing;
    if (syntax.isOpaque) verdict.effects = mergeEffects(verdict.effects, pinning('function'));
  }
  for (const waiting of verdict.waiting.splice(0)) waiting();
}

const knownEffects =
  /^(set_config|setseed|currval|lastval|pg_(try_)?advisory_(un)?lock(_shared|_all)?|pg_(create|copy)_(logical|physical)_replication_slot|pg_replication_origin_(session|xact)_(setup|reset)|pg_backup_(start|stop))$/;

function isKnownEffect(name: string): boolean {
  return knownEffects.test(name);
}

/** All that a known verdict says, user functions judged by `catalog` (without one they are not judged). */
export function effectsOf(verdict: Verdict, catalog: Catalog | null): Effects | null {
  const { effects, shape } = verdict;
  if (shape === null) return effects;
  let all = mergeEffects(effects, shape.effects);
  if (shape.functions.some((name) => catalog === null || !catalog.isHarmless(name)))
    all = mergeEffects(all, pinning('function'));
  if (shape.isUnparsed) all = mergeEffects(all, pinning('opaque'));
  return all;
}
