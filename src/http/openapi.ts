/** The description of the API (OpenAPI 3.1), made from the route table and the schemas that validate. */
import { statuses } from './problem.ts';
import { routes, type Route } from './routes.ts';
import { pendingAnswer, problemAnswer, type AnswerSchema } from './answers.ts';
import { jsonSchema } from './schemas.ts';

type Json = Readonly<Record<string, unknown>>;

function parameters(route: Route): Json[] {
  const inPath = Array.from(route.path.matchAll(/:(\w+)/g), ([, name]) => ({
    name,
    in: 'path',
    required: true,
    schema: { type: 'string', minLength: 1, maxLength: 64 },
  }));
  const inQuery = Object.entries(route.query.shape).map(([name, schema]) => ({
    name,
    in: 'query',
    required: false,
    schema: jsonSchema(schema as AnswerSchema),
  }));
  const approvalId = { name: 'Approval-Id', in: 'header', required: false, schema: { type: 'string', maxLength: 128 } };
  return [...inPath, ...inQuery, ...(route.approval === true ? [approvalId] : [])];
}

function requestBody(route: Route): Json | undefined {
  if (route.body === undefined) return undefined;
  const forms = [route.body.one, ...(route.body.batch ? [route.body.batch] : [])].map(jsonSchema);
  return {
    required: route.body.optional !== true,
    content: { 'application/json': { schema: forms.length === 1 ? forms[0] : { anyOf: forms } } },
  };
}

function describeAnswer(description: string, answer: AnswerSchema): Json {
  return { description, content: { 'application/json': { schema: jsonSchema(answer) } } };
}

/** Answered before it is done. */
const later: ReadonlySet<string> = new Set(['rotate', 'destroyVersion', 'callOffDestruction']);

function describeRoute(route: Route): Json {
  const body = requestBody(route);
  const isLater = later.has(route.operation);
  return {
    operationId: route.operation,
    parameters: parameters(route),
    ...(body && { requestBody: body }),
    responses: {
      [isLater ? 202 : 200]: describeAnswer('Done.', route.answer),
      ...(route.approval === true &&
        !isLater && { 202: describeAnswer('Waits until other people agree.', pendingAnswer) }),
      default: { $ref: '#/components/responses/Problem' },
    },
  };
}

export function describeApi(): Json {
  const paths: Record<string, Record<string, Json>> = {};
  for (const route of routes) {
    const path = route.path.replaceAll(/:(\w+)/g, '{$1}');
    (paths[path] ??= {})[route.method] = describeRoute(route);
  }
  const codes = Object.entries(statuses).map(([code, status]) => `${code} ${status}`);
  return {
    openapi: '3.1.0',
    info: {
      title: 'Fieldkeep',
      version: '1',
      license: { name: 'Apache-2.0', identifier: 'Apache-2.0' },
      description: 'Field-level encryption and key rotation.',
    },
    jsonSchemaDialect: 'https://json-schema.org/draft/2020-12/schema',
    security: [{ bearer: [] }],
    paths,
    components: {
      securitySchemes: { bearer: { type: 'http', scheme: 'bearer', bearerFormat: 'JWT' } },
      responses: {
        Problem: {
          description: `A problem (RFC 9457). Codes: ${codes.join(', ')}.`,
          content: { 'application/problem+json': { schema: { $ref: '#/components/schemas/Problem' } } },
        },
      },
      schemas: { Problem: jsonSchema(problemAnswer) },
    },
  };
}
