/**
 * What a session is doing, and what follows from that alone. Set by client/session, which says at its head how one leads to another; shown by ops.
 */
export type SessionState =
  /** No server; nothing asked. */
  | 'idle'
  /** In the queue of its class (guard/gate); the first message is kept in `#held`. */
  | 'queued'
  /** In the tarpit: its welcome, or the refusal of the message in `#held`, is kept for a moment. */
  | 'delayed'
  /** LISTEN is kept in `#held` until the connection that listens for all does. */
  | 'subscribing'
  /** A read is kept in `#held`: somebody else asks for the same, or the database is asked often enough for the cache. */
  | 'fetching'
  /** In the pool's queue; the first message is kept in `#held`. */
  | 'waiting'
  /** The server is being given this client's settings. */
  | 'syncing'
  /** A read of its rides on a server with those of others. */
  | 'sharing'
  /** The server works for this client. */
  | 'active'
  /** The client has its answer; the server is asked what is left of the transaction. */
  | 'settling'
  | 'closed';

/** It waits for a server, or for its turn. */
export function isInQueue(state: SessionState): boolean {
  return state === 'waiting' || state === 'queued';
}

/** Its request waits, and no server knows of it. */
export function isHeldUp(state: SessionState): boolean {
  return isInQueue(state) || state === 'delayed' || state === 'subscribing' || state === 'fetching';
}

/** Its client has asked for something that is yet to be answered. Of 'active' that is not known from the state. */
export function isAnswerDue(state: SessionState): boolean {
  switch (state) {
    case 'queued':
    case 'waiting':
    case 'subscribing':
    case 'fetching':
    case 'syncing':
    case 'settling':
    case 'sharing':
      return true;
    case 'idle':
    case 'delayed':
    case 'active':
    case 'closed':
      return false;
    default:
      return state satisfies never;
  }
}
