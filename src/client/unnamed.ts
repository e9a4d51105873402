/**
 * The unnamed prepared statement of one client, kept because a client may bind it long after the server that parsed it
 * was given back. Called by client/request.
 *
 * The one idea: each Parse makes a new version, whose number a server remembers (`unnamedId`) to tell whose statement
 * it has. A Parse that is skipped leaves the version before; one that fails leaves none, because Parse drops the
 * unnamed statement before it looks at the text.
 */
import type { Note } from '../protocol/outstanding.ts';
import type { ServerConnection } from '../server/connection.ts';
import { harmless, type Verdict } from '../sql/verdict.ts';

interface Version {
  id: number;
  /** The body of its Parse message behind the name. */
  body: Buffer;
  verdict: Verdict;
  state: 'live' | 'skipped' | 'failed';
  /** What it replaced, until its Parse is answered. */
  before: Version | null;
}

let lastId = 0;

export class UnnamedStatement {
  #version: Version | null = null;

  /** The version's number; 0: there is none. */
  get id(): number {
    return this.#version?.id ?? 0;
  }

  get body(): Buffer | null {
    return this.#version?.body ?? null;
  }

  get verdict(): Verdict {
    return this.#version?.verdict ?? harmless;
  }

  /** A Parse is sent to `server`: gives the note that takes it back. */
  replace(body: Buffer, verdict: Verdict, server: ServerConnection): Note {
    const version: Version = { id: ++lastId, body, verdict, state: 'live', before: this.#version };
    const idBefore = server.unnamedId;
    this.#version = version;
    server.unnamedId = version.id;
    return {
      done: () => {
        version.before = null;
      },
      dropped: (isSkipped) => {
        version.state = isSkipped ? 'skipped' : 'failed';
        this.#findLive();
        if (server.unnamedId === version.id) server.unnamedId = isSkipped ? idBefore : 0;
      },
    };
  }

  /** A Parse has been answered without a server. */
  keep(body: Buffer, verdict: Verdict): void {
    this.#version = { id: ++lastId, body, verdict, state: 'live', before: null };
  }

  /**
   * A Query or Close that drops what the server has is sent to `server`: gives the note that takes it back when that is
   * skipped, if there is something to. What the server has may be another client's.
   */
  drop(server: ServerConnection): Note | null {
    const version = this.#version;
    const idBefore = server.unnamedId;
    this.#version = null;
    server.unnamedId = 0;
    if (version === null && idBefore === 0) return null;
    return {
      dropped: (isSkipped) => {
        if (!isSkipped) return;
        server.unnamedId = idBefore;
        if (this.#version !== null) return;
        this.#version = version;
        this.#findLive();
      },
    };
  }

  /** It is gone for good. */
  forget(): void {
    this.#version = null;
  }

  /** The statement is the last version whose Parse was not skipped, or none when that one failed. */
  #findLive(): void {
    let version = this.#version;
    while (version !== null && version.state !== 'live') version = version.state === 'skipped' ? version.before : null;
    this.#version = version;
  }
}
