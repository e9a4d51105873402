/**
 * What texts that name prepared statements (client/translate) do to the client's names and to its server: what they need is brought there
 * first, and what they free is free for what is sent behind them. Called by client/request.
 *
 * The one idea: names change when a text is sent, and are taken back where it fails. Rollback does not take DEALLOCATE back.
 */
import * as encode from '../protocol/encode.ts';
import { ServerMessage, Status } from '../protocol/messages.ts';
import type { Note } from '../protocol/outstanding.ts';
import type { ServerConnection } from '../server/connection.ts';
import type { Verdict } from '../sql/verdict.ts';
import { FAIL } from './block.ts';
import type { Names } from './names.ts';
import { inject, prepareAll, prepareDummy } from './prepare.ts';
import type { RequestHost } from './request-host.ts';
import type { Translation } from './translate.ts';

/** Makes sure that the server has what a translated text names. False: it was asked for it (client/prepare). */
export function bring(host: RequestHost, { mentions }: Translation, server: ServerConnection): boolean {
  const needed = mentions.flatMap(({ reference, statement }) =>
    reference.command === 'deallocate' ? [] : [statement],
  );
  if (!prepareAll(host, needed, server)) return false;
  // Whatever its text, DEALLOCATE of it succeeds: any statement of this name will do.
  for (const { reference, statement } of mentions)
    if (reference.command === 'deallocate') prepareDummy(host, statement, server);
  return true;
}

const LEAVE = /^\s*(rollback|abort|commit|end)(\s+(work|transaction))?\s*;/i;
/** Characters at the beginning of a text that say so. */
const LEAVE_MAX = 100;

/** Does the text end a transaction before it needs what the server lacks? In one that has failed nothing can be parsed. */
export function leavesFirst({ text, mentions }: Translation, { statements }: ServerConnection): boolean {
  return (
    mentions.some(({ statement }) => !statements.has(statement)) && LEAVE.test(text.toString('latin1', 0, LEAVE_MAX))
  );
}

/**
 * How far a simple Query is with the statements that its text names: 'asked', or 'inBatch' when a batch was open, while the server parses them;
 * 'outside': so that they can be parsed, the transaction that has failed was left, and is to be entered again; 'failed': one could not be parsed.
 */
export type Bringing = 'no' | 'asked' | 'inBatch' | 'outside' | 'failed';

/** As `bring`, for a simple Query: what is brought is a batch of its own, which must end before the Query. 'no': it may be sent. */
export function bringForQuery(
  before: Bringing,
  host: RequestHost,
  translation: Translation,
  server: ServerConnection,
): Bringing {
  const { outstanding } = server;
  const wasOpen = outstanding.isBatchOpen;
  const hasFailed = before === 'no' && outstanding.isQuiet && outstanding.status === Status.Failed;
  const mustLeave = hasFailed && leavesFirst(translation, server);
  if (mustLeave) server.ask('ROLLBACK', host, null);
  const isOutside = mustLeave || before === 'outside';
  if (!bring(host, translation, server)) {
    if (isOutside) return 'outside';
    return before !== 'no' ? before : wasOpen ? 'inBatch' : 'asked';
  }
  const isOurs = before === 'asked' || isOutside || (!wasOpen && outstanding.isBatchOpen);
  if (!isOurs) return 'no';
  if (outstanding.isDiscarding) return 'failed';
  inject(host, 'Sync', encode.sync, server, null);
  if (isOutside) server.ask(FAIL, host, null);
  return 'no';
}

/** DEALLOCATE ALL and DISCARD ALL free all names: gives what takes that back when they fail. */
export function freeAll(names: Names, server: ServerConnection): () => void {
  const freed = names.all();
  for (const [name, statement] of freed) {
    names.undefine(name, statement);
    names.change(name);
  }
  const present = server.statements.takeAll();
  return () => {
    for (const [statement, presence] of present) server.statements.add(statement, presence);
    for (const [name, statement] of freed) names.define(name, statement);
  };
}

/** DEALLOCATE frees the names that it names: gives the note that takes back what has failed; null: it names none of ours. */
export function freeMentioned(
  names: Names,
  { effects }: Verdict,
  { mentions }: Translation,
  server: ServerConnection,
): Note | null {
  const freed = mentions.filter(({ reference }) => reference.command === 'deallocate');
  if (freed.length === 0) return null;
  const deallocates = effects!.references.filter(({ command }) => command === 'deallocate');
  const order = new Map(deallocates.map((reference, index) => [reference, index]));
  const presences = freed.map(({ reference, statement }) => {
    names.undefine(reference.name, statement);
    names.change(reference.name);
    return server.statements.remove(statement);
  });
  let done = 0;
  return {
    message: (type, bytes) => {
      if (type === ServerMessage.CommandComplete && bytes.includes('DEALLOCATE\0')) done++;
    },
    dropped: () => {
      freed.forEach(({ reference, statement }, index) => {
        if (order.get(reference)! < done) return;
        names.define(reference.name, statement);
        server.statements.add(statement, presences[index]);
      });
    },
  };
}
