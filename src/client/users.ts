/**
 * Who may log in: the userlist, in the format of PgBouncer's auth_file. Called by client/login, and by client/secrets to find what
 * to log in to a server with.
 *
 *     "name" "password | md5… | SCRAM-SHA-256$…"      quotes inside are doubled; what follows on a line is ignored
 */
import { readFileSync } from 'node:fs';
import { md5Secret } from '../protocol/md5.ts';
import { type Keys, makeVerifier, parseVerifier, type Verifier } from '../protocol/scram.ts';
import { messageOf } from '../util/errors.ts';

export type UserSecret =
  | { kind: 'password'; password: string; verifier: Promise<Verifier> | null }
  | { kind: 'md5'; secret: string }
  | { kind: 'verifier'; verifier: Verifier }
  /** It exists, and nothing proves it. */
  | { kind: 'none' };

const ENTRY = /^\s*"((?:[^"]|"")*)"\s+"((?:[^"]|"")*)"/;

export class Users {
  readonly #secrets = new Map<string, UserSecret>();
  /** Keys that clients proved to have, for logging in as them (pass-through). */
  readonly #keys = new Map<string, Keys>();

  /** Reads a userlist; throws when the file cannot be read or a line is neither an entry, empty nor a comment. */
  static read(file: string | null): Users {
    if (file === null) return new Users('');
    let text: string;
    try {
      text = readFileSync(file, 'utf8');
    } catch (thrown) {
      throw new Error(`auth.users: ${messageOf(thrown)}; it is PgBouncer's auth_file: lines of "name" "secret"`);
    }
    return new Users(text, file);
  }

  constructor(text: string, file = 'userlist') {
    for (const [index, line] of text.split('\n').entries()) {
      if (/^\s*([;#].*)?$/.test(line)) continue;
      const match = ENTRY.exec(line);
      if (match === null) throw new Error(`${file}:${index + 1}:1: expected "name" "secret"`);
      const [name, secret] = match.slice(1).map((part) => part.replaceAll('""', '"')) as [string, string];
      this.#secrets.set(name, readSecret(secret));
    }
  }

  get names(): Iterable<string> {
    return this.#secrets.keys();
  }

  /** Do most users have a verifier? Then who is none of them is asked as they are. */
  get haveVerifiers(): boolean {
    const kinds = [...this.#secrets.values()].filter(({ kind }) => kind === 'verifier');
    return kinds.length * 2 > this.#secrets.size;
  }

  /** How often a verifier of the file is hashed: who is none of its users is asked as they are; undefined: as a new one. */
  get iterations(): number | undefined {
    for (const secret of this.#secrets.values()) if (secret.kind === 'verifier') return secret.verifier.iterations;
    return undefined;
  }

  get size(): number {
    return this.#secrets.size;
  }

  get(user: string): UserSecret | null {
    return this.#secrets.get(user) ?? null;
  }

  /** Remembers what a client proved to have. */
  remember(user: string, keys: Keys): void {
    this.#keys.set(user, keys);
  }

  keys(user: string): Keys | null {
    return this.#keys.get(user) ?? null;
  }

  /** Takes over what clients of the userlist before (reload) proved, where it still fits. */
  inherit(before: Users): void {
    for (const [user, keys] of before.#keys) {
      const secret = this.#secrets.get(user);
      if (secret?.kind === 'verifier' && secret.verifier.serverKey.equals(keys.serverKey)) this.#keys.set(user, keys);
    }
  }
}

/** A secret as Postgres and PgBouncer write them. */
export function readSecret(secret: string): UserSecret {
  // As in Postgres, nobody gets in by an empty password.
  if (secret === '') return { kind: 'none' };
  const verifier = parseVerifier(secret);
  if (verifier !== null) return { kind: 'verifier', verifier };
  if (/^md5[0-9a-f]{32}$/.test(secret)) return { kind: 'md5', secret };
  return { kind: 'password', password: secret, verifier: null };
}

/** The SCRAM verifier of a user, made once from a password in clear text; null when only an md5 hash is known. */
export function verifierOf(secret: UserSecret): Promise<Verifier> | null {
  switch (secret.kind) {
    case 'verifier':
      return Promise.resolve(secret.verifier);
    case 'password':
      secret.verifier ??= makeVerifier(secret.password);
      return secret.verifier;
    case 'md5':
    case 'none':
      return null;
    default:
      return secret satisfies never;
  }
}

/** The md5 hash of a user's password; null when only a SCRAM verifier is known. */
export function md5Of(secret: UserSecret, user: string): string | null {
  if (secret.kind === 'md5') return secret.secret;
  return secret.kind === 'password' ? md5Secret(secret.password, user) : null;
}
