/**
 * The tags of a statement: key='value' pairs in a comment at its end, as sqlcommenter writes them. Called by sql/verdict
 * while some class is matched by tags.
 *
 * Format: sqlcommenter specification, "Format": pairs joined by commas, keys and values URL-encoded, values in single
 * quotes with their own quotes escaped by a backslash.
 */

const CLOSE = Buffer.from('*/');
const OPEN = Buffer.from('/*');
/** A comment that is longer is no list of tags. */
const COMMENT_MAX = 2048;
const PAIR = /([^\s=,']+)\s*=\s*'((?:[^'\\]|\\.)*)'\s*(?:,|$)/y;

/** The tags of the text `source[start, end)`; null: it has none. */
export function tagsOf(source: Buffer, start: number, end: number): ReadonlyMap<string, string> | null {
  let last = end;
  while (last > start && isSpaceOrSemicolon(source[last - 1]!)) last--;
  if (last - start < 4 || !source.subarray(last - 2, last).equals(CLOSE)) return null;
  const from = Math.max(start, last - COMMENT_MAX);
  const open = source.subarray(from, last).lastIndexOf(OPEN);
  if (open === -1) return null;
  return parse(source.toString('utf8', from + open + 2, last - 2).trim());
}

function isSpaceOrSemicolon(byte: number): boolean {
  return byte === 0x20 || byte === 0x3b || (byte >= 0x09 && byte <= 0x0d) || byte === 0;
}

function parse(comment: string): ReadonlyMap<string, string> | null {
  const tags = new Map<string, string>();
  PAIR.lastIndex = 0;
  while (PAIR.lastIndex < comment.length) {
    const found = PAIR.exec(comment);
    if (found === null) return null; // A comment for people.
    tags.set(decoded(found[1]!), decoded(found[2]!.replaceAll(/\\(.)/g, '$1')));
    while (comment[PAIR.lastIndex] === ' ') PAIR.lastIndex++;
  }
  return tags.size > 0 ? tags : null;
}

function decoded(text: string): string {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}
