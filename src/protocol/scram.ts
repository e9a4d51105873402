/**
 * SCRAM-SHA-256 (RFC 5802, RFC 7677), both roles, without I/O: towards clients we are the server, towards Postgres
 * the client. Called by client/login and server/login.
 *
 * Within TLS a proof can be bound to the server's certificate (SCRAM-SHA-256-PLUS, `tls-server-end-point` of RFC 5929), so that
 * nobody in the middle can pass it on.
 *
 * The one idea: a proof made with a verifier's keys is as good as one made with the password. After a client proved
 * itself we hold its ClientKey, and can log in as that client to a server whose verifier has the same salt and
 * iteration count (pass-through). The key derivation is asynchronous, so that a login storm does not stop the event
 * loop.
 */
import { createHash, createHmac, pbkdf2, randomBytes, timingSafeEqual } from 'node:crypto';
import { promisify } from 'node:util';
// @ts-expect-error: the file has no types.
import { signatureAlgorithmHashFromCertificate } from 'pg/lib/crypto/cert-signatures';

export const SCRAM_SHA_256 = 'SCRAM-SHA-256';
export const SCRAM_SHA_256_PLUS = 'SCRAM-SHA-256-PLUS';

const derive = promisify(pbkdf2);
const KEY_BYTES = 32;
/** What Postgres and PgBouncer use for verifiers that they make (scram_iterations). */
const ITERATIONS = 4096;
/** More would let a server (or a userlist) make us burn CPU: Postgres itself warns beyond this. */
const ITERATIONS_MAX = 600_000;
/** What precedes a message ("gs2-header"): whether and to what the proof is bound. */
const BOUND = 'p=tls-server-end-point,,';
const UNBOUND = 'n,,';
/** It could be bound, and the other side seems not to offer that. */
const UNOFFERED = 'y,,';

const EDWARDS = [Buffer.from('300506032b6570', 'hex'), Buffer.from('300506032b6571', 'hex')];

/** `tls-server-end-point`: the hash of a server's certificate (DER), by the algorithm of its signature (RFC 5929, section 4.1). Throws when that has none. */
export function endPointOf(certificate: Buffer): Buffer {
  // Ed25519 and Ed448 have no hash of their own, so that nobody agrees on one, and libpq gives up the login.
  if (EDWARDS.some((oid) => certificate.includes(oid))) throw new Error('this kind of certificate cannot be bound to');
  const named = String(signatureAlgorithmHashFromCertificate(certificate)).toLowerCase().replace('-', '');
  return createHash(named === 'md5' || named === 'sha1' ? 'sha256' : named)
    .update(certificate)
    .digest();
}

function bindingOf(header: string, endPoint: Buffer | null): string {
  const data = header === BOUND && endPoint !== null ? endPoint : Buffer.alloc(0);
  return Buffer.concat([Buffer.from(header), data]).toString('base64');
}

/** What `rolpassword` holds: enough to check a proof, not enough to make one. */
export interface Verifier {
  iterations: number;
  salt: Buffer;
  storedKey: Buffer;
  serverKey: Buffer;
}

/** Enough to make proofs for the verifier with this salt and iteration count. */
export interface Keys {
  iterations: number;
  salt: Buffer;
  clientKey: Buffer;
  serverKey: Buffer;
}

const hmac = (key: Buffer, text: string) => createHmac('sha256', key).update(text).digest();
const hash = (bytes: Buffer) => createHash('sha256').update(bytes).digest();
const xor = (a: Buffer, b: Buffer) => Buffer.from(a.map((byte, at) => byte ^ b[at]!));

/** Reads `SCRAM-SHA-256$<iterations>:<salt>$<StoredKey>:<ServerKey>`; null when it is something else. */
export function parseVerifier(text: string): Verifier | null {
  const match = /^SCRAM-SHA-256\$(\d{1,7}):([A-Za-z0-9+/=]+)\$([A-Za-z0-9+/=]+):([A-Za-z0-9+/=]+)$/.exec(text);
  if (match === null) return null;
  const [salt, storedKey, serverKey] = match.slice(2).map((part) => Buffer.from(part, 'base64')) as [
    Buffer,
    Buffer,
    Buffer,
  ];
  const iterations = Number(match[1]);
  if (iterations < 1 || iterations > ITERATIONS_MAX) return null;
  if (storedKey.length !== KEY_BYTES || serverKey.length !== KEY_BYTES) return null;
  return { iterations, salt, storedKey, serverKey };
}

/** Derives the keys of a password. Postgres applies SASLprep; for what is not ASCII, NFKC comes closest. */
export async function deriveKeys(password: string, salt: Buffer, iterations: number): Promise<Keys> {
  const salted = await derive(password.normalize('NFKC'), salt, iterations, KEY_BYTES, 'sha256');
  return { iterations, salt, clientKey: hmac(salted, 'Client Key'), serverKey: hmac(salted, 'Server Key') };
}

/** Makes a verifier for a password that is known in clear text. */
export async function makeVerifier(password: string): Promise<Verifier> {
  const { clientKey, ...rest } = await deriveKeys(password, randomBytes(16), ITERATIONS);
  return { ...rest, storedKey: hash(clientKey) };
}

/** Is it the password that this verifier was made from? */
export async function isPasswordOf(password: string, { salt, iterations, storedKey }: Verifier): Promise<boolean> {
  const { clientKey } = await deriveKeys(password, salt, iterations);
  return timingSafeEqual(hash(clientKey), storedKey);
}

/** A verifier that no proof satisfies, the same for each name: unknown users cannot be told from wrong passwords. */
export function mockVerifier(user: string, secret: Buffer, iterations = ITERATIONS): Verifier {
  const salt = createHmac('sha256', secret).update(user).digest().subarray(0, 16);
  return { iterations, salt, storedKey: randomBytes(KEY_BYTES), serverKey: randomBytes(KEY_BYTES) };
}

function attributes(message: string): Map<string, string> {
  return new Map(message.split(',').map((part) => [part.slice(0, 1), part.slice(2)]));
}

/** The server's role, for one login. Each step returns null when the client broke the protocol or failed. */
export class ScramServer {
  readonly #verifier: Verifier;
  /** Of our certificate; null: nothing can be bound to it. */
  readonly #endPoint: Buffer | null;
  #header = '';
  #clientFirst = '';
  #serverFirst = '';
  #nonce = '';

  constructor(verifier: Verifier, endPoint: Buffer | null = null) {
    this.#verifier = verifier;
    this.#endPoint = endPoint;
  }

  /** Mechanisms to offer, the best first. */
  get mechanisms(): string[] {
    return this.#endPoint === null ? [SCRAM_SHA_256] : [SCRAM_SHA_256_PLUS, SCRAM_SHA_256];
  }

  /** Takes client-first-message of a `mechanism`, gives server-first-message. */
  first(message: string, mechanism = SCRAM_SHA_256): string | null {
    const match = /^((?:[ny]|p=tls-server-end-point),,)(n=[^,]*,r=([\x21-\x2b\x2d-\x7e]+)(?:,.*)?)$/.exec(message);
    if (match === null) return null;
    const [, header, clientFirst, nonce] = match as unknown as [string, string, string, string];
    if (header.startsWith('p') !== (mechanism === SCRAM_SHA_256_PLUS)) return null;
    // It believes that we do not offer what we do: somebody in the middle has taken it out of our list.
    if (header.startsWith('y') && this.#endPoint !== null) return null;
    this.#header = header;
    this.#clientFirst = clientFirst;
    this.#nonce = nonce + randomBytes(18).toString('base64');
    const { salt, iterations } = this.#verifier;
    this.#serverFirst = `r=${this.#nonce},s=${salt.toString('base64')},i=${iterations}`;
    return this.#serverFirst;
  }

  /** Takes client-final-message, gives server-final-message and the keys that the client proved to have. */
  final(message: string): { reply: string; keys: Keys } | null {
    const proofAt = message.lastIndexOf(',p=');
    const parts = attributes(message);
    const binding = parts.get('c');
    if (proofAt === -1 || parts.get('r') !== this.#nonce) return null;
    if (binding !== bindingOf(this.#header, this.#endPoint)) return null;
    const proof = Buffer.from(message.slice(proofAt + 3), 'base64');
    if (proof.length !== KEY_BYTES) return null;
    const text = `${this.#clientFirst},${this.#serverFirst},${message.slice(0, proofAt)}`;
    const { storedKey, serverKey, salt, iterations } = this.#verifier;
    const clientKey = xor(proof, hmac(storedKey, text));
    if (!timingSafeEqual(hash(clientKey), storedKey)) return null;
    return { reply: `v=${hmac(serverKey, text).toString('base64')}`, keys: { iterations, salt, clientKey, serverKey } };
  }
}

/** Ours is not the secret that the server has: trying again cannot help. */
export class ScramMismatch extends Error {}

/** The client's role, for one login, with a password or with keys. Errors are thrown: they name the server's fault. */
export class ScramClient {
  readonly #secret: string | Keys;
  readonly #nonce = randomBytes(18).toString('base64');
  readonly #clientFirst = `n=,r=${this.#nonce}`;
  readonly #header: string;
  readonly #endPoint: Buffer | null;
  readonly mechanism: string;
  #signature = '';
  /** The server has proved that it knows the password too. */
  isVerified = false;

  /** `endPoint`: of the server's certificate; null: nothing can be bound to one. `isOffered`: the server knows how to. */
  constructor(secret: string | Keys, endPoint: Buffer | null = null, isOffered = false) {
    this.#secret = secret;
    this.#endPoint = endPoint;
    this.#header = endPoint === null ? UNBOUND : isOffered ? BOUND : UNOFFERED;
    this.mechanism = this.#header === BOUND ? SCRAM_SHA_256_PLUS : SCRAM_SHA_256;
  }

  /** client-first-message. */
  first(): string {
    return `${this.#header}${this.#clientFirst}`;
  }

  /** Takes server-first-message, gives client-final-message. */
  async final(message: string): Promise<string> {
    const parts = attributes(message);
    const nonce = parts.get('r') ?? '';
    const salt = Buffer.from(parts.get('s') ?? '', 'base64');
    const iterations = Number(parts.get('i'));
    if (!nonce.startsWith(this.#nonce) || nonce === this.#nonce || salt.length === 0) {
      throw new Error('the server sent a SCRAM message that does not answer ours');
    }
    if (!Number.isInteger(iterations) || iterations < 1 || iterations > ITERATIONS_MAX) {
      throw new Error(`the server asks for ${parts.get('i')} SCRAM iterations`);
    }
    const { clientKey, serverKey } = await this.#keys(salt, iterations);
    const withoutProof = `c=${bindingOf(this.#header, this.#endPoint)},r=${nonce}`;
    const text = `${this.#clientFirst},${message},${withoutProof}`;
    this.#signature = hmac(serverKey, text).toString('base64');
    return `${withoutProof},p=${xor(clientKey, hmac(hash(clientKey), text)).toString('base64')}`;
  }

  async #keys(salt: Buffer, iterations: number): Promise<Keys> {
    if (typeof this.#secret === 'string') return deriveKeys(this.#secret, salt, iterations);
    if (!this.#secret.salt.equals(salt) || this.#secret.iterations !== iterations) {
      throw new ScramMismatch(
        'the server has another SCRAM verifier for this user than the userlist: copy it there anew',
      );
    }
    return this.#secret;
  }

  /** Takes server-final-message; throws unless the server knows the password too. */
  verify(message: string): void {
    if (attributes(message).get('v') !== this.#signature)
      throw new Error('the server could not prove that it knows the password');
    this.isVerified = true;
  }
}
