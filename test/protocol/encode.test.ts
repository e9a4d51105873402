/** protocol/encode: what we originate is what pg-protocol, the oracle, reads. */
import { Parser } from 'pg-protocol/dist/parser';
import t from 'tap';
import * as encode from '../../src/protocol/encode.ts';
import { readErrorFields, readParameter, readTextRow } from '../../src/protocol/messages.ts';
import { error, SqlState } from '../../src/protocol/sqlstate.ts';

function decode(...messages: Buffer[]): object[] {
  const seen: object[] = [];
  new Parser().parse(Buffer.concat(messages), (message: object) => seen.push({ ...message }));
  return seen;
}

t.test('messages of a server are what the oracle reads', async (t) => {
  const refusal = error(SqlState.InsufficientResources, 'no: ü', { detail: 'why', hint: 'what to do' });
  t.match(
    decode(
      encode.authenticationOk,
      encode.parameterStatus('TimeZone', 'UTC'),
      encode.backendKeyData('\x00\x00\x00\x07\x00\x00\x00\x09'),
      encode.readyForQuery(),
      encode.parseComplete,
      encode.closeComplete,
      encode.rowDescription([
        { name: 'a', oid: encode.Oid.text },
        { name: 'b', oid: encode.Oid.int4 },
      ]),
      encode.dataRow(['x', null]),
      encode.commandComplete('SHOW'),
      encode.notice('careful'),
    ),
    [
      { name: 'authenticationOk' },
      { name: 'parameterStatus', parameterName: 'TimeZone', parameterValue: 'UTC' },
      { name: 'backendKeyData', processID: 7, secretKey: 9 },
      { name: 'readyForQuery', status: 'I' },
      { name: 'parseComplete' },
      { name: 'closeComplete' },
      {
        name: 'rowDescription',
        fields: [
          { name: 'a', dataTypeID: 25 },
          { name: 'b', dataTypeID: 23, dataTypeSize: 4 },
        ],
      },
      { name: 'dataRow', fields: ['x', null] },
      { name: 'commandComplete', text: 'SHOW' },
      { name: 'notice', message: 'careful' },
    ],
  );
  const bytes = encode.errorResponse(refusal);
  t.match(Object.fromEntries(readErrorFields(bytes.subarray(5))), {
    S: 'ERROR',
    V: 'ERROR',
    C: '53000',
    M: 'no: ü',
    D: 'why',
    H: 'what to do',
  });
});

t.test('authentication messages are what the oracle reads', async (t) => {
  t.match(decode(encode.authenticationSasl(['SCRAM-SHA-256'])), [
    { name: 'authenticationSASL', mechanisms: ['SCRAM-SHA-256'] },
  ]);
  t.match(decode(encode.authenticationSaslContinue('r=x')), [{ name: 'authenticationSASLContinue', data: 'r=x' }]);
  t.match(decode(encode.authenticationSaslFinal('v=x')), [{ name: 'authenticationSASLFinal', data: 'v=x' }]);
  t.match(decode(encode.authenticationMd5(Buffer.from([1, 2, 3, 4]))), [
    { name: 'authenticationMD5Password', salt: Buffer.from([1, 2, 3, 4]) },
  ]);
});

t.test('readers give back what was written, byte for byte', async (t) => {
  t.same(readTextRow(encode.dataRow(['', 'a', null]).subarray(5)), ['', 'a', null]);
  t.same(readParameter(encode.parameterStatus('n', '\xff\xfe').subarray(5)), { name: 'n', value: '\xff\xfe' });
});
