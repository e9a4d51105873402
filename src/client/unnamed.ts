/**
 * The unnamed prepared statement of one client, kept because a client may bind it long after the server that parsed it
 * was given back; and its unnamed portal. Called by client/request and client/alone.
 *
 * The one idea: each Parse makes a new version, whose number a server remembers (`unnamedId`) to tell whose statement
 * it has; what drops the statement makes an empty one. What is skipped leaves the version before; a Parse that fails
 * leaves none, because it drops the unnamed statement before it looks at the text.
 */
import * as encode from '../protocol/encode.ts';
import { ClientMessage } from '../protocol/messages.ts';
import type { Note } from '../protocol/outstanding.ts';
import type { ServerConnection } from '../server/connection.ts';
import { harmless, type Verdict } from '../sql/verdict.ts';
import { inject } from './prepare.ts';
import type { RequestHost } from './request-host.ts';
import type { Translation } from './translate.ts';

interface Version {
  /** 0: there is no statement any more. */
  id: number;
  /** The body of its Parse message behind the name. */
  body: Buffer | null;
  verdict: Verdict;
  state: 'live' | 'skipped' | 'failed';
  /** What it replaced, until that is known to be gone. */
  before: Version | null;
  /** `unnamedId` of the server before. */
  idBefore: number;
}

/** What a portal would run. */
export interface Portal {
  verdict: Verdict;
  translation: Translation | null;
}

export const harmlessPortal: Portal = { verdict: harmless, translation: null };

/** As `unnamedId` of a server: what it has is not known, or is not what a client wrote, because names in it were translated. */
export const UNKNOWN = -1;
let lastId = 0;

export class Unnamed {
  #version: Version | null = null;
  portal: Portal = harmlessPortal;

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
    const version = this.#push({ id: ++lastId, body, verdict }, server);
    return {
      done: () => {
        version.before = null;
      },
      dropped: (isSkipped) => {
        if (isSkipped) return this.#skip(version, server);
        version.state = 'failed';
        this.#findLive();
        if (server.unnamedId === version.id) server.unnamedId = 0;
      },
    };
  }

  /** A Parse has been answered without a server. */
  keep(body: Buffer, verdict: Verdict): void {
    this.#version = { id: ++lastId, body, verdict, state: 'live', before: null, idBefore: 0 };
  }

  /** Gives the server this client's statement, in its words if it needs a translation, or takes somebody else's away. */
  bring(host: RequestHost, translation: Translation | null, server: ServerConnection): void {
    const { id, body } = this;
    // The names in its text are looked up anew each time that it is bound.
    if (server.unnamedId === id && translation === null) return;
    server.unnamedId = translation === null ? id : UNKNOWN;
    const forget = () => {
      server.unnamedId = UNKNOWN;
    };
    const note = { errorIsForward: true, dropped: forget };
    if (body !== null) inject(host, 'Parse', encode.parse('', translation?.text ?? body), server, note);
    else inject(host, 'Close', encode.aboutStatement(ClientMessage.Close, ''), server, note);
  }

  /**
   * A Query or Close that drops what the server has is sent to `server`: gives the note that takes it back when that is
   * skipped, if there is something to. What the server has may be another client's.
   */
  drop(server: ServerConnection): Note | null {
    if (this.id === 0 && (this.#version?.before ?? null) === null && server.unnamedId === 0) return null;
    const version = this.#push({ id: 0, body: null, verdict: harmless }, server);
    const settle = () => {
      version.before = null;
    };
    return { done: settle, dropped: (isSkipped) => (isSkipped ? this.#skip(version, server) : settle()) };
  }

  #push(known: Pick<Version, 'id' | 'body' | 'verdict'>, server: ServerConnection): Version {
    const version: Version = { ...known, state: 'live', before: this.#version, idBefore: server.unnamedId };
    this.#version = version;
    server.unnamedId = version.id;
    return version;
  }

  /** What made `version` was skipped: the server has what it had before, unless later ones are on their way to it. */
  #skip(version: Version, server: ServerConnection): void {
    version.state = 'skipped';
    let after = this.#version;
    while (after !== null && after.before !== version) after = after.before;
    if (after !== null) after.idBefore = version.idBefore;
    else if (server.unnamedId === version.id) server.unnamedId = version.idBefore;
    this.#findLive();
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
