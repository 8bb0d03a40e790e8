import assert from 'node:assert/strict';
import { Ajv2020 } from 'ajv/dist/2020.js';
import { describeApi } from '../../src/http/openapi.ts';
import { routes } from '../../src/http/routes.ts';
import { checkBody, decryptBody, encryptBody } from '../../src/http/schemas.ts';

/** The parts of OpenAPI 3.1 that our description uses, closed: a misspelled member is an error. */
const content = { type: 'object', minProperties: 1, additionalProperties: { $ref: '#/$defs/media' } };
const openapi31 = {
  $defs: {
    media: {
      type: 'object',
      required: ['schema'],
      properties: { schema: { type: 'object' } },
      additionalProperties: false,
    },
    reference: {
      type: 'object',
      required: ['$ref'],
      properties: { $ref: { type: 'string' } },
      additionalProperties: false,
    },
    parameter: {
      type: 'object',
      required: ['name', 'in', 'schema'],
      properties: {
        name: { type: 'string' },
        in: { enum: ['path', 'query', 'header'] },
        required: { type: 'boolean' },
        schema: { type: 'object' },
      },
      additionalProperties: false,
    },
    response: {
      type: 'object',
      required: ['description'],
      properties: { description: { type: 'string' }, content },
      additionalProperties: false,
    },
    operation: {
      type: 'object',
      required: ['operationId', 'responses'],
      properties: {
        operationId: { type: 'string' },
        parameters: { type: 'array', items: { $ref: '#/$defs/parameter' } },
        requestBody: {
          type: 'object',
          required: ['content'],
          properties: { required: { type: 'boolean' }, content },
          additionalProperties: false,
        },
        responses: {
          type: 'object',
          minProperties: 1,
          propertyNames: { pattern: '^(?:default|[1-5](?:[0-9]{2}|XX))$' },
          additionalProperties: { anyOf: [{ $ref: '#/$defs/response' }, { $ref: '#/$defs/reference' }] },
        },
      },
      additionalProperties: false,
    },
  },
  type: 'object',
  required: ['openapi', 'info', 'paths'],
  properties: {
    openapi: { type: 'string', pattern: '^3\\.1\\.\\d+$' },
    info: {
      type: 'object',
      required: ['title', 'version'],
      properties: {
        title: { type: 'string' },
        version: { type: 'string' },
        description: { type: 'string' },
        license: {
          type: 'object',
          required: ['name'],
          properties: { name: { type: 'string' }, identifier: { type: 'string' } },
          additionalProperties: false,
        },
      },
      additionalProperties: false,
    },
    jsonSchemaDialect: { type: 'string', format: 'uri' },
    security: { type: 'array' },
    paths: {
      type: 'object',
      propertyNames: { pattern: '^/' },
      additionalProperties: {
        type: 'object',
        properties: { get: { $ref: '#/$defs/operation' }, post: { $ref: '#/$defs/operation' } },
        additionalProperties: false,
      },
    },
    components: { type: 'object' },
  },
  additionalProperties: false,
};

interface Described {
  readonly paths: Record<string, Record<string, { requestBody?: { content: Record<string, { schema: object }> } }>>;
}

describe('http/openapi', () => {
  const api = JSON.parse(JSON.stringify(describeApi())) as Described & Record<string, unknown>;
  const ajv = new Ajv2020({ strict: false, validateFormats: false });

  it('is OpenAPI 3.1 and covers every route', () => {
    const validate = ajv.compile(openapi31);
    assert.ok(validate(api), JSON.stringify(validate.errors));
    const described = Object.entries(api.paths).flatMap(([path, methods]) =>
      Object.keys(methods).map((m) => `${m} ${path}`),
    );
    const routed = routes.map(({ method, path }) => `${method} ${path.replaceAll(/:(\w+)/g, '{$1}')}`);
    assert.deepEqual(described.toSorted(), routed.toSorted());
  });

  it('holds only schemas that compile, and references that lead somewhere', () => {
    const text = JSON.stringify(api);
    for (const [, name] of text.matchAll(/"#\/components\/([^"]+)"/g)) {
      const found = name!
        .split('/')
        .reduce<unknown>((at, key) => (at as Record<string, unknown>)[key], api['components']);
      assert.ok(found, name!);
    }
    let schemas = 0;
    const visit = (node: unknown): void => {
      if (typeof node !== 'object' || node === null) return;
      for (const [key, child] of Object.entries(node)) {
        if (key !== 'schema' || '$ref' in (child as object)) visit(child);
        else {
          ajv.compile(child as object);
          schemas += 1;
        }
      }
    };
    visit(api.paths);
    assert.ok(schemas > routes.length);
  });

  it('says which calls may wait for other people, and which take no body', () => {
    type Described = { parameters: { name: string }[]; responses: object; requestBody: { required: boolean } };
    const at = (path: string) => api.paths[path]!['post'] as unknown as Described;
    const waive = at('/v1/rotations/{id}/failures/waive');
    assert.deepEqual(Object.keys(waive.responses), ['200', '202', 'default']);
    assert.ok(waive.parameters.some(({ name }) => name === 'Approval-Id'));
    const pause = at('/v1/rotations/{id}/pause');
    assert.deepEqual(Object.keys(pause.responses), ['200', 'default']);
    assert.deepEqual([waive.requestBody.required, pause.requestBody.required], [true, false]);
  });

  it('says what validation says', () => {
    const context = { table: 't', column: 'c', row: '1' };
    const one = { class: 'ssn', value: 'x', context };
    const bodies = [
      one,
      { ...one, more: 1 },
      { ...one, value: 1 },
      { items: [one] },
      { items: [] },
      { items: [{ ...one, view: 'full' }] },
    ];
    const opened = { envelope: 'fe1', context };
    const cases = [
      { path: '/v1/encrypt', schema: encryptBody, bodies },
      {
        path: '/v1/decrypt',
        schema: decryptBody,
        bodies: [opened, { ...opened, view: 'none' }, { items: [opened], view: 'last4' }, {}],
      },
    ];
    for (const { path, schema, bodies } of cases) {
      const validate = ajv.compile(api.paths[path]!['post']!.requestBody!.content['application/json']!.schema);
      for (const body of bodies) {
        let accepted = true;
        try {
          checkBody(schema, body);
        } catch {
          accepted = false;
        }
        assert.equal(validate(body), accepted, JSON.stringify(body));
      }
    }
  });
});
