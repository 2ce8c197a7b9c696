/** Sets of people. */
import { api, body, type Schemas } from './client'

const at = (id: string) => ({ params: { path: { id } } })

export const pools = {
  list: (cursor?: string) => body(api.GET('/v1/pools', { params: { query: { cursor, limit: 100 } } })),
  get: (id: string) => body(api.GET('/v1/pools/{id}', at(id))),
  create: (pool: Schemas['NewPool']) => body(api.POST('/v1/pools', { body: pool })),
  remove: (id: string) => body(api.DELETE('/v1/pools/{id}', at(id))),
  members: (id: string, cursor?: string) => body(api.GET('/v1/pools/{id}/members', { params: { path: { id }, query: { cursor, limit: 100 } } })),
  add: (id: string, userIds: string[]) => body(api.POST('/v1/pools/{id}/members', { ...at(id), body: { user_ids: userIds } })),
  drop: (id: string, userIds: string[]) => body(api.DELETE('/v1/pools/{id}/members', { ...at(id), body: { user_ids: userIds } })),
}
