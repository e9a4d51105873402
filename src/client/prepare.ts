/**
 * Gives a server the prepared statements that a request needs, before the request is sent. Called by client/request.
 *
 * The one idea: a statement that the server lacks is parsed there by an injected Parse whose reply the client never
 * sees, unless it is an error: that stands for the request that needed it. The oldest statement is closed to make room.
 *
 * A statement is described when it is parsed: a plan whose rows have changed their shape is an error for those who rely
 * on it ("cached plan must not change result type"), on any server.
 */
import * as encode from '../protocol/encode.ts';
import { ClientMessage, ServerMessage } from '../protocol/messages.ts';
import type { Note, RequestKind } from '../protocol/outstanding.ts';
import type { ServerConnection } from '../server/connection.ts';
import type { Statement } from '../server/statements.ts';
import type { RequestHost } from './request-host.ts';
import { rowShape, withName } from './rewrite.ts';

/** Asks the server for something of our own, before what the client asks for. */
export function inject(
  host: RequestHost,
  kind: RequestKind,
  bytes: Buffer,
  server: ServerConnection,
  note: Note | null,
): void {
  if (server.outstanding.push(kind, host, 'swallow', null, note)) server.send(bytes);
}

/** Statements that a server is asked for before it is waited for. */
const ASKED_MAX = 100;

/** Would a server understand it now as it is known to be understood? */
export function isUnderstood({ lease, settings }: RequestHost, { isOwn, planSettings }: Statement): boolean {
  return isOwn || (planSettings === settings.planKey && lease.hasKnownSettings);
}

/**
 * Makes sure that the server has the statement. False: it was asked for it; the session is blocked until it answers,
 * and the frame that needs it is handed in again.
 */
export function prepare(host: RequestHost, statement: Statement, server: ServerConnection): boolean {
  if (!server.statements.has(statement)) return prepareAll(host, [statement], server);
  server.statements.touch(statement); // Nearly always.
  return true;
}

/** As `prepare`, for all that one text needs, of which there may be more than a server is to keep (pool.preparedMax): none makes room for another. */
export function prepareAll(host: RequestHost, statements: Iterable<Statement>, server: ServerConnection): boolean {
  let spared = 0;
  const lacking: Statement[] = [];
  for (const statement of new Set(statements)) {
    if (!server.statements.has(statement)) lacking.push(statement);
    else {
      server.statements.touch(statement);
      spared++;
    }
  }
  const last = Math.min(lacking.length, ASKED_MAX) - 1;
  if (last === -1) return true;
  for (let index = 0; index <= last; index++)
    give(host, lacking[index]!, server, spared + index, index === last ? () => host.unblock() : () => {});
  if (server.outstanding.isDiscarding) return true; // Everything is skipped: the frame will be, too.
  server.send(encode.flush);
  host.block();
  return false;
}

/** Has the server parse it. `onEnd`: that is answered, or skipped. */
function give(
  host: RequestHost,
  statement: Statement,
  server: ServerConnection,
  spared: number,
  onEnd: () => void,
): void {
  // What it means there may be what it means to this client alone.
  if (!isUnderstood(host, statement)) server.isDoomed = true;
  if (server.statements.isDummy(statement)) closeOn(host, server, statement);
  makeRoom(host, server, spared);
  server.statements.add(statement);
  host.pool.counts.serverParses++;
  inject(host, 'Parse', encode.parse(statement.name, statement.body), server, {
    errorIsForward: true,
    done: () => server.statements.become(statement, 'ready'),
    dropped: () => void server.statements.remove(statement),
  });
  const description: { bytes: Buffer | null } = { bytes: null };
  inject(host, 'Describe', encode.aboutStatement(ClientMessage.Describe, statement.name), server, {
    errorIsForward: true,
    message: (type, bytes) => {
      if (type === ServerMessage.RowDescription || type === ServerMessage.NoData) description.bytes = bytes;
    },
    done: () => {
      statement.isVerified = true;
      if (!isAsDescribed(host, statement, description.bytes)) server.statements.become(statement, 'changed');
      onEnd();
    },
    dropped: onEnd,
  });
}

/** Clients may describe portals only: ask what the rows look like while the plan is the one that they will rely on. */
export function learnDescription(host: RequestHost, statement: Statement, server: ServerConnection): void {
  inject(host, 'Describe', encode.aboutStatement(ClientMessage.Describe, statement.name), server, {
    message: remembering(statement),
  });
}

/** For the note of a Describe: keeps what the rows look like. */
export function remembering(statement: Statement): NonNullable<Note['message']> {
  return (type, bytes) => {
    if (type === ServerMessage.RowDescription || type === ServerMessage.NoData)
      statement.description ??= rowShape(bytes);
  };
}

/** Gives the server any statement of this name, for a DEALLOCATE of it. */
export function prepareDummy(host: RequestHost, statement: Statement, server: ServerConnection): void {
  if (server.statements.has(statement) || server.statements.isDummy(statement)) return;
  makeRoom(host, server);
  server.statements.add(statement, 'dummy');
  const body = Buffer.from('SELECT 1\0\0\0');
  inject(host, 'Parse', encode.parse(statement.name, body), server, {
    errorIsForward: true,
    dropped: () => void server.statements.remove(statement),
  });
}

/** Room for one more statement: the one that was not used for the longest time is closed. */
export function makeRoom(host: RequestHost, server: ServerConnection, spared = 0): void {
  // A Close that the server skips brings its statement back, so that there may be no end to victims.
  for (const victim of server.statements.victims(spared)) closeOn(host, server, victim);
}

/** Closes a statement on the server; when that is skipped, it is still there. */
export function closeOn(host: RequestHost, server: ServerConnection, statement: Statement): void {
  const presence = server.statements.remove(statement);
  inject(host, 'Close', encode.aboutStatement(ClientMessage.Close, statement.name), server, {
    dropped: () => server.statements.add(statement, presence),
  });
}

/** For the note of a Bind: watches for a plan that became invalid, so that the next Parse is real. */
export function planNote(
  host: RequestHost,
  statement: Statement,
  name: string,
  server: ServerConnection,
  onGone: () => void,
): Note {
  return {
    replaceError: (bytes) => {
      // Somebody has closed it behind our back: the next one to need it parses it again.
      if (bytes.includes('C26000\0') && bytes.includes(statement.name)) {
        server.statements.remove(statement);
        onGone();
      }
      if (bytes.includes('C0A000\0') && bytes.includes('RRevalidateCachedQuery\0'))
        host.pool.statements.forget(statement);
      return withName(bytes, statement.name, name);
    },
  };
}

/** Remembers what a server says that the rows look like; false: it is not what another has said before. */
function isAsDescribed(host: RequestHost, statement: Statement, bytes: Buffer | null): boolean {
  if (bytes === null) return true;
  const description = rowShape(bytes);
  statement.description ??= description;
  if (statement.description.equals(description)) return true;
  host.pool.statements.forget(statement);
  return false;
}
