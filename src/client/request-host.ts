/**
 * What a session is to the requests of its client: to client/request, and to what that is made of (client/alone, client/prepare,
 * client/mentions, client/unnamed).
 */
import type { Owner } from '../server/connection.ts';
import type { ServerPool } from '../server/pool.ts';
import type { Settings } from '../server/settings.ts';
import type { Verdict } from '../sql/verdict.ts';
import type { Lease } from './lease.ts';

export interface RequestHost extends Owner {
  readonly pool: Pick<ServerPool, 'counts' | 'statements' | 'reads'>;
  /** What the client's session is set to. */
  readonly settings: Settings;
  /** Its hold on the server. */
  readonly lease: Pick<Lease, 'isFresh' | 'isPinned' | 'hasKnownSettings' | 'mayRun' | 'noteSetting'>;
  /** A statement with this verdict ran to its end, or failed. */
  onRan(verdict: Verdict, isOk: boolean): void;
  /** A text with this verdict is sent. */
  onRunning(verdict: Verdict): void;
  /** The server is asked for something first; the present frame is to be handled again after `unblock`. */
  block(): void;
  unblock(): void;
  /** The batch that the client believes to be open has failed: what it sends is skipped up to its Sync. */
  skipBatch(): void;
}
