/**
 * Statements that do nothing but begin or end a transaction. Called by sql/verdict; client/block answers them without a
 * server where that is possible.
 *
 * The one idea: only texts of which nobody can doubt what they do. Transaction modes count where no server can refuse
 * them: a standby takes neither SERIALIZABLE nor READ WRITE.
 */
import { Token, type Tokens } from './shape.ts';

/** BEGIN or START TRANSACTION; `sql` is its text without comments, `tag` what a server answers. */
interface Begin {
  kind: 'begin';
  tag: 'BEGIN' | 'START TRANSACTION';
  sql: string;
}

export type Control =
  | Begin
  | { kind: 'commit' }
  | { kind: 'rollback' }
  /** Begins a transaction, and is none of the above: it has more in it, or modes that a server may refuse. */
  | { kind: 'beginning' }
  /** Begins with a statement that may end a transaction, and is none of the above; or is empty, which is never refused. */
  | { kind: 'mixed' }
  /** COMMIT PREPARED: it ends a transaction that some other session has begun. */
  | { kind: 'prepared' };

const begin: Begin = { kind: 'begin', tag: 'BEGIN', sql: 'BEGIN' };
const start: Begin = { kind: 'begin', tag: 'START TRANSACTION', sql: 'START TRANSACTION' };
const commit: Control = { kind: 'commit' };
const rollback: Control = { kind: 'rollback' };
const beginning: Control = { kind: 'beginning' };
const mixed: Control = { kind: 'mixed' };
const prepared: Control = { kind: 'prepared' };

/** Modes that every server takes, as their words. */
const modes = [
  ['isolation', 'level', 'read', 'committed'],
  ['isolation', 'level', 'read', 'uncommitted'],
  ['isolation', 'level', 'repeatable', 'read'],
  ['read', 'only'],
  ['not', 'deferrable'],
  ['deferrable'],
];

/** What the statement in `tokens` has to do with transactions; null: nothing, or nothing that is known. */
export function controlOf(tokens: Tokens): Control | null {
  if (isEnd(tokens, 0)) return mixed;
  if (tokens.kinds[0] !== Token.Word) return null;
  switch (tokens.source[tokens.starts[0]!]! | 0x20) {
    case 0x62: // b
      return tokens.is(0, 'begin') ? beginOf(tokens, afterNoise(tokens), begin) : null;
    case 0x73: // s
      return tokens.is(0, 'start') && tokens.is(1, 'transaction') ? beginOf(tokens, 2, start) : null;
    case 0x63: // c
      if (!tokens.is(0, 'commit')) return null;
      return tokens.is(1, 'prepared') ? prepared : ending(tokens, commit);
    case 0x65: // e
      return tokens.is(0, 'end') ? ending(tokens, commit) : null;
    case 0x72: // r
      return tokens.is(0, 'rollback') ? ending(tokens, rollback) : null;
    case 0x61: // a
      return tokens.is(0, 'abort') ? ending(tokens, rollback) : null;
    case 0x70: // p
      return tokens.is(0, 'prepare') && tokens.is(1, 'transaction') ? mixed : null;
    default:
      return null;
  }
}

function ending(tokens: Tokens, control: Control): Control {
  return isEnd(tokens, afterNoise(tokens)) ? control : mixed;
}

/** Behind the first word and WORK or TRANSACTION. */
function afterNoise(tokens: Tokens): number {
  return tokens.is(1, 'work') || tokens.is(1, 'transaction') ? 2 : 1;
}

/** Nothing comes from `at` on but semicolons. */
function isEnd(tokens: Tokens, at: number): boolean {
  while (at < tokens.count && tokens.kinds[at] === Token.Semicolon) at++;
  return at >= tokens.count;
}

function beginOf(tokens: Tokens, first: number, plain: Begin): Control {
  let at = first;
  let sql = plain.sql;
  while (!isEnd(tokens, at)) {
    if (at > first && tokens.kinds[at] === Token.Comma) at++;
    const mode = modes.find((words) => words.every((word, index) => tokens.is(at + index, word)));
    if (mode === undefined) return beginning;
    sql += `${at > first ? ',' : ''} ${mode.join(' ')}`;
    at += mode.length;
  }
  return at === first ? plain : { ...plain, sql };
}
