/**
 * Who may read and who may change something over HTTP. Called by ops/http.
 *
 * The one idea: a browser of somebody who may is the way in for somebody who may not. So besides a token or an admin's login,
 * the request must name this host in Host (else it may be a name that was made to point here: DNS rebinding), and
 * if it says where it comes from, it must come from here.
 */
import { createHash, timingSafeEqual } from 'node:crypto';
import { readFileSync } from 'node:fs';
import type { IncomingHttpHeaders } from 'node:http';
import { isIP } from 'node:net';
import type { FailedLogins } from '../client/failures.ts';
import { md5Of, type Users, verifierOf } from '../client/users.ts';
import type { Config } from '../config/schema.ts';
import { md5Secret } from '../protocol/md5.ts';
import { isPasswordOf } from '../protocol/scram.ts';
import { messageOf } from '../util/errors.ts';

/** Its `actor`, or why not, with the HTTP status to say so. */
export type Access = { actor: string } | { status: 401 | 403 | 429; why: string };

interface House {
  ops: Config['ops'];
  auth: Config['auth'];
  users: Users;
  failures: FailedLogins;
  /** Monotonic ms. */
  now: number;
}

/** The token, which may be another one at each request. Throws an Error that names the key. */
export function readToken(file: string): string {
  try {
    return readFileSync(file, 'utf8').trim();
  } catch (thrown) {
    throw new Error(`ops.tokenFile cannot be read: ${messageOf(thrown)}`);
  }
}

function hasToken(headers: IncomingHttpHeaders, tokenFile: string): boolean {
  return isEqual(headers.authorization ?? '', `Bearer ${readToken(tokenFile)}`);
}

/**
 * Why this request may not read, with the HTTP status to say so; null: it may. Who listens on a loopback address without a token relies on
 * nobody else reaching that, and a browser there can be led to it by a name.
 */
export function whyNotRead(
  headers: IncomingHttpHeaders,
  ops: Config['ops'],
): { status: 401 | 403; why: string } | null {
  if (ops.tokenFile !== null)
    return hasToken(headers, ops.tokenFile)
      ? null
      : { status: 401, why: 'this needs the token of ops.tokenFile as a bearer token' };
  return isLoopback(ops.host) && !isOwnHost(headers, ops) ? { status: 403, why: FOREIGN_HOST } : null;
}

const FOREIGN_HOST = 'the header Host must be the address of this server, or localhost';

/** The request was not led here by a name that somebody else has made to point here. */
function isOwnHost({ host = '' }: IncomingHttpHeaders, ops: Config['ops']): boolean {
  const name = host.replace(/:\d+$/, '').replace(/^\[(.*)\]$/, '$1');
  return isIP(name) !== 0 || name === 'localhost' || name === ops.host;
}

/** May this request, from `address`, change something? */
export async function accessOf(
  headers: IncomingHttpHeaders,
  address: string,
  { ops, auth, users, failures, now }: House,
): Promise<Access> {
  // A browser sends no token by itself.
  if (ops.tokenFile !== null && hasToken(headers, ops.tokenFile)) return { actor: 'token' };
  if (auth.method === 'trust' && !isLoopback(ops.host))
    return {
      status: 403,
      why: 'with auth.method trust everybody could be an admin: use the token of ops.tokenFile, another method, or a loopback address as ops.host',
    };
  const { host, origin } = headers;
  if (!isOwnHost(headers, ops)) return { status: 403, why: FOREIGN_HOST };
  const site = headers['sec-fetch-site'];
  const isForeign = origin !== undefined && origin !== `http://${host}` && origin !== `https://${host}`;
  if (isForeign || (site !== undefined && site !== 'same-origin' && site !== 'none'))
    return { status: 403, why: 'the request comes from another site' };
  const [, encoded] = /^Basic (\S+)$/.exec(headers.authorization ?? '') ?? [];
  const [, user, password] = /^([^:]*):(.*)$/s.exec(Buffer.from(encoded ?? '', 'base64').toString()) ?? [];
  if (user !== undefined) {
    failures.configure(auth.failures);
    const waitMs = failures.waitOf(address, user, now);
    if (waitMs > 0)
      return {
        status: 429,
        why: `too many logins from this address have failed: try again in ${Math.ceil(waitMs / 1000)} s (auth.failures)`,
      };
    if (auth.admins.includes(user) && (await isRight(user, password!, auth.method, users))) {
      failures.onSuccess(address, user);
      return { actor: user };
    }
    failures.onFailure(address, user, now);
  }
  return {
    status: 401,
    why: 'this needs the token of ops.tokenFile, or the login of one of auth.admins (pgweir: --token-file, or --user and PGPASSWORD)',
  };
}

async function isRight(user: string, password: string, method: string, users: Users): Promise<boolean> {
  if (method === 'trust') return true;
  const secret = users.get(user);
  if (secret === null) return false;
  const verifier = verifierOf(secret);
  if (verifier !== null) return isPasswordOf(password, await verifier);
  return isEqual(md5Secret(password, user), md5Of(secret, user) ?? '');
}

function isLoopback(host: string): boolean {
  return host === 'localhost' || host === '::1' || /^127\./.test(host);
}

/** Compares in a time that tells nothing of where they differ. */
function isEqual(a: string, b: string): boolean {
  const digest = (text: string) => createHash('sha256').update(text).digest();
  return timingSafeEqual(digest(a), digest(b));
}
