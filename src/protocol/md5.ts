/** The md5 method of logging in ("Message Flow", AuthenticationMD5Password), for both roles. */
import { createHash } from 'node:crypto';

const md5 = (...parts: (string | Buffer)[]) => {
  const hash = createHash('md5');
  for (const part of parts) hash.update(part);
  return hash.digest('hex');
};

/** What `rolpassword` holds: `md5` and the hash of password and user name. */
export function md5Secret(password: string, user: string): string {
  return `md5${md5(password, user)}`;
}

/** The answer to a salt, made from `md5Secret`. */
export function md5Answer(secret: string, salt: Buffer): string {
  return `md5${md5(secret.slice(3), salt)}`;
}
