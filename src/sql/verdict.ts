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
import { channelsOf, type Listenings } from './channel.ts';
import { type Control, controlOf } from './control.ts';
import { type Change, changeOf, changesByName } from './dialect.ts';
import { type Effects, findEffects, mergeEffects, pinning, probing } from './effects.ts';
import { type Kind, type Parser, SQL_BYTES_MAX, type Syntax, type TableReference } from './parser.ts';
import { isLocal, readKey } from './read.ts';
import type { Reading } from './reading.ts';
import { cut, numberOf, shapeOf, shownShape, Tokens } from './shape.ts';
import { tagsOf } from './tags.ts';
import { isUpkeep } from './upkeep.ts';

const SHAPES_MAX = 10_000;
/** Characters of a shape that are kept for people. */
const SHOWN_MAX = 400;

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

/** What a statement is for and which tables it names: the parser's word, shared by all texts of one shape. */
export interface Nature {
  /** Its shape, for people: the beginning, without values and comments. */
  readonly text: string;
  /** Null while the parser has not spoken, and when it cannot. */
  kind: Kind | null;
  tables: readonly TableReference[];
  reading: Reading | null;
  /** It does nothing but make a temporary table, or use one. */
  isTemporary: boolean;
  /** Of how servers understand what comes behind it. */
  readonly change: Change;
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
  /** Where it begins or ends listening to channels. */
  listening: Listenings | null;
  /** Tags in a comment at its end (sqlcommenter). */
  tags: ReadonlyMap<string, string> | null;
  /** The number of its shape (sql/shape); 0: nothing is known of it. */
  number: number;
  nature: Nature | null;
  /** A read that may share a server: the number of its shape (sql/read); 0 for everything else. */
  read: number;
  /** A read whose answer depends on the server that it runs on; when somebody wants to know. */
  isLocal: boolean;
  /** It only asks whether anybody is there, or sets the session up. */
  isUpkeep: boolean;
  /** It changes how servers understand what comes behind it, or may; only by what it says itself. */
  changesDialect: boolean;
}

export const harmless: Verdict = {
  effects: null,
  shape: null,
  isCommit: false,
  control: null,
  listening: null,
  tags: null,
  number: 0,
  nature: null,
  read: 0,
  isLocal: false,
  isUpkeep: false,
  changesDialect: false,
};
/** Of it nothing is known. */
export const opaque: Verdict = { ...harmless, effects: pinning('opaque'), changesDialect: true };
/** The longest text that is cut into tokens; a longer one is opaque. */
export const TEXT_BYTES_MAX = 1024 * 1024;

/** What is wanted beyond effects. */
export interface Wanted {
  /** Which statements are reads that may share a server. */
  reads: boolean;
  /** And which of these ask about the server that they run on. */
  places: boolean;
}

export class Judge {
  readonly #parser: Parser;
  readonly #tokens = new Tokens();
  readonly #shapes = new LRUCache<string, ShapeVerdict>({ max: SHAPES_MAX });
  readonly #natures = new LRUCache<number, Nature>({ max: SHAPES_MAX });
  /** Of shapes of which nothing but their number matters: one for all texts, so that none is made for each. */
  readonly #plain = new LRUCache<number, Verdict>({ max: SHAPES_MAX });
  /** The text that was judged last. */
  readonly #last = { source: Buffer.alloc(0) as Buffer, start: -1, end: -1, verdict: harmless };
  #wanted: Wanted = { reads: false, places: false };
  /** Changes when somebody wants to know more than before, or less: what was judged before may be judged again. */
  generation = 0;

  constructor(parser: Parser) {
    this.#parser = parser;
  }

  /** Says what somebody wants to know of every statement; it costs time. */
  want(wanted: Wanted): void {
    const isSame = (Object.keys(wanted) as (keyof Wanted)[]).every((key) => wanted[key] === this.#wanted[key]);
    if (isSame) return;
    this.#wanted = wanted;
    this.#last.start = -1;
    this.#plain.clear();
    this.generation++;
  }

  /** What is known of the shape with this number; null: nothing. */
  natureOf(number: number): Nature | null {
    return this.#natures.peek(number) ?? null;
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
      verdict = { ...verdict, effects, listening: channelsOf(tokens) };
    } else if (verdict === harmless && this.#wanted.reads) {
      const read = readKey(tokens);
      if (read !== 0) verdict = { ...harmless, read, isLocal: this.#wanted.places && isLocal(tokens) };
    }
    const tags = tagsOf(source, start, end);
    const number = verdict.read || numberOf(tokens);
    const nature = this.#judgeNature(number, source, start, end);
    const upkeep = isUpkeep(tokens);
    const isPlain = tags === null && isHarmless(verdict) && control === null && nature.change !== 'byName';
    // SELECT 1 is upkeep and SELECT 2 is not: of one shape there are two at most.
    const key = upkeep ? -number : number;
    const known = isPlain ? this.#plain.get(key) : undefined;
    if (known?.nature === nature) verdict = known;
    else {
      const changesDialect = nature.change === 'byName' ? changesByName(tokens) : nature.change === 'yes';
      verdict = { ...verdict, tags, number, nature, isUpkeep: upkeep, changesDialect };
      if (isPlain) this.#plain.set(key, verdict);
    }
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

  #judgeNature(number: number, source: Buffer, start: number, end: number): Nature {
    const known = this.#natures.get(number);
    if (known !== undefined) return known;
    const text = shownShape(this.#tokens, SHOWN_MAX);
    const nature: Nature = {
      text,
      kind: null,
      tables: [],
      reading: null,
      isTemporary: false,
      change: changeOf(this.#tokens),
    };
    this.#natures.set(number, nature);
    if (end - start > SQL_BYTES_MAX) return nature; // The parser would not take it.
    this.#parser.parseLater(source.toString('utf8', start, end), (syntax, isFinal) => {
      if (!isFinal) this.#natures.delete(number);
      if (syntax === null || !syntax.isParsed) return;
      const { kind, tables, reading } = syntax;
      Object.assign(nature, { kind, tables, reading, isTemporary: syntax.isTemporary && syntax.count === 1 });
    });
    return nature;
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

/** Nothing of it outlives its transaction, as far as the tokens can tell. */
export function isHarmless({ effects, shape }: Verdict): boolean {
  return effects === null && shape === null;
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
