/**
 * Cuts SQL text into tokens, straight from the bytes on the wire, and writes a statement's shape: the text with
 * literals replaced, lists collapsed and comments gone, so that statements which differ only in their values are one.
 * Called by sql/effects for every statement text; about a microsecond for a short one.
 *
 * The one idea: tokens are numbers in arrays that are used again and again, so that looking at a statement allocates
 * nothing. Lexical rules: Postgres manual, "Lexical Structure", with standard_conforming_strings on (a session that
 * turns it off is opaque, see client/session).
 *
 * Invariant: every byte of the text belongs to one token, to white space or to a comment; an unfinished string, comment
 * or quoted name ends at the end of the text (the server will say what is wrong with it).
 */

import { fold } from '../util/fold.ts';
import { printable } from '../util/printable.ts';

export const Token = {
  /** An identifier or key word. */
  Word: 1,
  /** A "quoted" identifier. */
  Quoted: 2,
  String: 3,
  Number: 4,
  Parameter: 5,
  /** ( */
  Open: 6,
  /** ) */
  Close: 7,
  Comma: 8,
  Semicolon: 9,
  Dot: 10,
  /** Any other character. */
  Operator: 11,
} as const;

const CAPACITY = 1024;

/** The tokens of the text that was cut last. Valid until the next `cut`. */
export class Tokens {
  source: Buffer = Buffer.alloc(0);
  count = 0;
  kinds = new Uint8Array(CAPACITY);
  starts = new Uint32Array(CAPACITY);
  ends = new Uint32Array(CAPACITY);

  add(kind: number, start: number, end: number): void {
    if (this.count === this.kinds.length) this.#grow();
    this.kinds[this.count] = kind;
    this.starts[this.count] = start;
    this.ends[this.count++] = end;
  }

  #grow(): void {
    const size = 2 * this.kinds.length;
    const copy = <A extends Uint8Array | Uint32Array>(bigger: A, old: A): A => {
      bigger.set(old);
      return bigger;
    };
    this.kinds = copy(new Uint8Array(size), this.kinds);
    this.starts = copy(new Uint32Array(size), this.starts);
    this.ends = copy(new Uint32Array(size), this.ends);
  }

  /** Lets go of the text, and of arrays that one huge statement has blown up. */
  clear(): void {
    this.source = Buffer.alloc(0);
    this.count = 0;
    if (this.kinds.length > 64 * CAPACITY) {
      this.kinds = new Uint8Array(CAPACITY);
      this.starts = new Uint32Array(CAPACITY);
      this.ends = new Uint32Array(CAPACITY);
    }
  }

  /** The text of a token as it stands. */
  text(at: number): string {
    return this.source.toString('latin1', this.starts[at], this.ends[at]);
  }

  /** The name that a Word or Quoted token means: folded to lower case, or without its quotes. '' for other tokens. */
  name(at: number): string {
    if (at < 0 || at >= this.count) return '';
    switch (this.kinds[at]) {
      case Token.Word:
        return fold(this.text(at));
      case Token.Quoted:
        return this.source.toString('latin1', this.starts[at]! + 1, this.ends[at]! - 1).replaceAll('""', '"');
      default:
        return '';
    }
  }

  /** Is the token the (lower-case) key word? Compares without making a string. */
  is(at: number, word: string): boolean {
    if (at < 0 || at >= this.count || this.kinds[at] !== Token.Word) return false;
    const start = this.starts[at]!;
    if (this.ends[at]! - start !== word.length) return false;
    for (let i = 0; i < word.length; i++) {
      if ((this.source[start + i]! | 0x20) !== word.charCodeAt(i)) return false;
    }
    return true;
  }

  /** The value of a plain string literal ('…'), or null when the token is anything else. */
  literal(at: number): string | null {
    if (at >= this.count || this.kinds[at] !== Token.String || this.source[this.starts[at]!] !== 0x27) return null;
    return this.source.toString('latin1', this.starts[at]! + 1, this.ends[at]! - 1).replaceAll("''", "'");
  }
}

// Classes of bytes.
const SPACE = 1;
const LETTER = 2;
const DIGIT = 3;
const classes = new Uint8Array(256);
for (const byte of [0x20, 0x09, 0x0a, 0x0d, 0x0c, 0x0b]) classes[byte] = SPACE;
for (let byte = 0; byte < 256; byte++) {
  const lower = byte | 0x20;
  if ((lower >= 0x61 && lower <= 0x7a) || byte === 0x5f || byte >= 0x80) classes[byte] = LETTER;
  if (byte >= 0x30 && byte <= 0x39) classes[byte] = DIGIT;
}

/** The bytes of words without regard to case; beyond ASCII they are parts of characters. */
const lower = Uint8Array.from({ length: 256 }, (_, byte) => (byte < 0x80 ? byte | 0x20 : byte));

const QUOTE = 0x27;
const DOUBLE_QUOTE = 0x22;
const DOLLAR = 0x24;
const BACKSLASH = 0x5c;
const SLASH = 0x2f;
const STAR = 0x2a;
const DASH = 0x2d;
const PLUS = 0x2b;
const DOT = 0x2e;
const ZERO = 0x30;
const UNDERSCORE = 0x5f;

/** Cuts `source[start, end)` into `tokens`. */
export function cut(tokens: Tokens, source: Buffer, start: number, end: number): void {
  tokens.source = source;
  tokens.count = 0;
  let at = start;
  while (at < end) {
    const byte = source[at]!;
    const from = at;
    switch (classes[byte]) {
      case SPACE:
        at++;
        break;
      case LETTER:
        at = cutWord(tokens, source, from, end);
        break;
      case DIGIT:
        at = numberEnd(source, from, end);
        tokens.add(Token.Number, from, at);
        break;
      default:
        at = cutSymbol(tokens, source, from, end);
    }
  }
}

function cutWord(tokens: Tokens, source: Buffer, from: number, end: number): number {
  const at = wordEnd(source, from + 1, end);
  const prefix = source[from]! | 0x20;
  if (
    at < end &&
    source[at] === QUOTE &&
    at === from + 1 &&
    (prefix === 0x65 || prefix === 0x62 || prefix === 0x78 || prefix === 0x6e)
  ) {
    // E'…', B'…', X'…', N'…'
    const stringEnds = stringEnd(source, at, end, prefix === 0x65);
    tokens.add(Token.String, from, stringEnds);
    return stringEnds;
  }
  if (at + 1 < end && source[at] === 0x26 && at === from + 1 && prefix === 0x75) {
    // U&'…' and U&"…"
    const quote = source[at + 1];
    if (quote === QUOTE || quote === DOUBLE_QUOTE) {
      const stringEnds = quotedEnd(source, at + 1, end, quote, false);
      // An escaped name is left as it stands, escapes and all: it equals no name that anybody looks for.
      tokens.add(quote === QUOTE ? Token.String : Token.Quoted, from, stringEnds);
      return stringEnds;
    }
  }
  tokens.add(Token.Word, from, at);
  return at;
}

function cutSymbol(tokens: Tokens, source: Buffer, from: number, end: number): number {
  const byte = source[from]!;
  const next = from + 1 < end ? source[from + 1]! : 0;
  let at = from + 1;
  switch (byte) {
    case QUOTE:
      at = stringEnd(source, from, end, false);
      tokens.add(Token.String, from, at);
      return at;
    case DOUBLE_QUOTE:
      at = quotedEnd(source, from, end, DOUBLE_QUOTE, false);
      tokens.add(Token.Quoted, from, at);
      return at;
    case DOLLAR:
      return cutDollar(tokens, source, from, end);
    case DASH:
      if (next === DASH) return lineEnd(source, from, end);
      break;
    case SLASH:
      if (next === STAR) return commentEnd(source, from, end);
      break;
    case 0x28:
      tokens.add(Token.Open, from, at);
      return at;
    case 0x29:
      tokens.add(Token.Close, from, at);
      return at;
    case 0x2c:
      tokens.add(Token.Comma, from, at);
      return at;
    case 0x3b:
      tokens.add(Token.Semicolon, from, at);
      return at;
    case 0x2e:
      if (classes[next] === DIGIT) {
        at = numberEnd(source, from, end);
        tokens.add(Token.Number, from, at);
      } else tokens.add(Token.Dot, from, at);
      return at;
    default:
  }
  tokens.add(Token.Operator, from, at);
  return at;
}

/** $1 or a dollar-quoted string ("Dollar-Quoted String Constants"). */
function cutDollar(tokens: Tokens, source: Buffer, from: number, end: number): number {
  let at = from + 1;
  if (at < end && classes[source[at]!] === DIGIT) {
    while (at < end && classes[source[at]!] === DIGIT) at++;
    tokens.add(Token.Parameter, from, at);
    return at;
  }
  while (at < end && classes[source[at]!]! >= LETTER) at++;
  if (source[at] !== DOLLAR || at >= end) {
    tokens.add(Token.Operator, from, from + 1);
    return from + 1;
  }
  const tag = source.subarray(from, at + 1);
  // Behind the text others may stand, which are not to be searched.
  const closing = source.subarray(at + 1, end).indexOf(tag);
  const stringEnds = closing === -1 ? end : at + 1 + closing + tag.length;
  tokens.add(Token.String, from, stringEnds);
  return stringEnds;
}

/**
 * The end of the string constant whose quote is at `from`. A constant goes on in the next one when nothing but white
 * space with a line break (and line comments) stands between them; it keeps its escapes ("String Constants").
 */
function stringEnd(source: Buffer, from: number, end: number, hasEscapes: boolean): number {
  let at = quotedEnd(source, from, end, QUOTE, hasEscapes);
  for (;;) {
    let next = at;
    let hasBreak = false;
    while (next < end) {
      const byte = source[next]!;
      if (byte === 0x0a || byte === 0x0d) hasBreak = true;
      if (classes[byte] === SPACE) next++;
      else if (byte === DASH && source[next + 1] === DASH) next = lineEnd(source, next, end);
      else break;
    }
    if (!hasBreak || next >= end || source[next] !== QUOTE) return at;
    at = quotedEnd(source, next, end, QUOTE, hasEscapes);
  }
}

/** The end of what the quote at `from` opens; a doubled quote stands for itself. */
function quotedEnd(source: Buffer, from: number, end: number, quote: number, hasEscapes: boolean): number {
  for (let at = from + 1; at < end; at++) {
    const byte = source[at];
    if (byte === BACKSLASH && hasEscapes) at++;
    else if (byte === quote) {
      if (at + 1 < end && source[at + 1] === quote) at++;
      else return at + 1;
    }
  }
  return end;
}

/**
 * The end of the number that begins with the digit or dot at `from`. What it must not have as part of it, a comment or a string, would hide
 * what follows; so where versions of Postgres differ (scan.l) both must end it in the same place. Up to 14 a name may stand right behind a number:
 * 0x1F and 1_000 are one each, with the letters of a name and its dollars. Later ones take that for a number, or for an error.
 */
function numberEnd(source: Buffer, from: number, end: number): number {
  let at = digitsEnd(source, from, end);
  if (at >= end) return end;
  const letter = source[at]! | 0x20;
  const isBased = at === from + 1 && source[from] === ZERO && (letter === 0x78 || letter === 0x6f || letter === 0x62);
  if (isBased || source[at] === UNDERSCORE) return wordEnd(source, at, end);
  if (source[at] === DOT) at = digitsEnd(source, at + 1, end);
  if (at >= end || (source[at]! | 0x20) !== 0x65) return at;
  const hasSign = source[at + 1] === PLUS || source[at + 1] === DASH;
  const exponent = hasSign ? at + 2 : at + 1;
  const exponentEnd = digitsEnd(source, exponent, end);
  return exponentEnd > exponent ? exponentEnd : at;
}

function digitsEnd(source: Buffer, from: number, end: number): number {
  let at = from;
  while (at < end && classes[source[at]!] === DIGIT) at++;
  return at;
}

/** The end of the word that goes on at `from`. */
function wordEnd(source: Buffer, from: number, end: number): number {
  let at = from;
  while (at < end && (classes[source[at]!]! >= LETTER || source[at] === DOLLAR)) at++;
  return at;
}

function lineEnd(source: Buffer, from: number, end: number): number {
  let at = from;
  while (at < end && source[at] !== 0x0a && source[at] !== 0x0d) at++;
  return at;
}

/** The end of a block comment; they nest. */
function commentEnd(source: Buffer, from: number, end: number): number {
  let depth = 0;
  for (let at = from; at < end; at++) {
    if (source[at] === SLASH && source[at + 1] === STAR) {
      depth++;
      at++;
    } else if (source[at] === STAR && source[at + 1] === SLASH) {
      at++;
      if (--depth === 0) return at + 1;
    }
  }
  return end;
}

/** The shape of the text in `tokens`: words in lower case, literals and parameters as `?`, lists of them as `?`. */
export function shapeOf(tokens: Tokens): string {
  return partsOf(tokens, tokens.count).join(' ');
}

/**
 * The beginning of it, for people: about `max` characters, a text of its own. What a setting is set to is a value, however it
 * is written, and what is no printable character is left out.
 */
export function shownShape(tokens: Tokens, max: number): string {
  const parts = partsOf(tokens, Math.min(tokens.count, max));
  if (parts[0] === 'set' || parts[0] === 'alter') {
    const at = parts.findIndex((part) => part === '=' || part === 'to');
    if (at >= 0) parts.splice(at + 1, parts.length, '?');
  }
  // A slice would keep the whole text alive: the copy does not.
  return printable(Buffer.from(parts.join(' ').slice(0, max), 'latin1').toString('utf8'));
}

function partsOf(tokens: Tokens, count: number): string[] {
  const parts: string[] = [];
  for (let at = 0; at < count; at++) {
    switch (tokens.kinds[at]) {
      case Token.Word:
        parts.push(fold(tokens.text(at)));
        break;
      case Token.String:
      case Token.Number:
      case Token.Parameter:
        if (parts.at(-1) === ',' && parts.at(-2) === '?') parts.pop();
        else parts.push('?');
        break;
      default:
        parts.push(tokens.text(at));
    }
  }
  return parts;
}

/** The shape of a text, given as Latin-1. */
export function shapeText(text: string): string {
  const tokens = new Tokens();
  const source = Buffer.from(text, 'latin1');
  cut(tokens, source, 0, source.length);
  return shapeOf(tokens);
}

/** Tokens without the semicolons at the end. */
export function lengthOf({ kinds, count }: Tokens): number {
  let end = count;
  while (end > 0 && kinds[end - 1] === Token.Semicolon) end--;
  return end;
}

/**
 * A number that stands for the shape of the statement in `tokens`, never 0: cheaper than the shape as text. Two FNV-1a
 * hashes of 32 bits (Fowler, Noll, Vo) side by side, of which a number holds 53 bits.
 */
export function numberOf(tokens: Tokens): number {
  const { kinds, starts, ends, source } = tokens;
  const end = lengthOf(tokens);
  let a = 0x811c9dc5;
  let b = 0x050c5d1f;
  for (let at = 0; at < end; at++) {
    const kind = kinds[at]!;
    switch (kind) {
      case Token.Word:
        for (let i = starts[at]!; i < ends[at]!; i++) {
          const byte = lower[source[i]!]!;
          a = Math.imul(a ^ byte, 0x01000193);
          b = Math.imul(b ^ byte, 0x01000193);
        }
        break;
      case Token.Quoted:
      case Token.Operator:
        for (let i = starts[at]!; i < ends[at]!; i++) {
          a = Math.imul(a ^ source[i]!, 0x01000193);
          b = Math.imul(b ^ source[i]!, 0x01000193);
        }
        break;
      case Token.Comma:
        // A list of values counts as one.
        if (isPlainValue(kinds[at - 1]!) && at + 1 < end && isPlainValue(kinds[at + 1]!)) {
          at++;
          continue;
        }
        break;
      default:
    }
    const mark = 0x100 + (isPlainValue(kind) ? Token.String : kind);
    a = Math.imul(a ^ mark, 0x01000193);
    b = Math.imul(b ^ mark, 0x01000193);
  }
  return (a >>> 0) * 0x20_0000 + (b >>> 11) || 1;
}

function isPlainValue(kind: number): boolean {
  return kind === Token.String || kind === Token.Number || kind === Token.Parameter;
}
