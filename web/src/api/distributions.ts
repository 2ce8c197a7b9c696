/** Coupons of a book given to a pool: planned, run, undone. */
import { api, body, type Schemas } from './client'

export type Mode = Schemas['DistributionMode']
export type NewDistribution = Schemas['NewDistribution']

const at = (id: string) => ({ params: { path: { id } } })

export const distributions = {
  list: (query: { cursor?: string; book_id?: string }) => body(api.GET('/v1/distributions', { params: { query } })),
  get: (id: string) => body(api.GET('/v1/distributions/{id}', at(id))),
  items: (id: string, cursor?: string) => body(api.GET('/v1/distributions/{id}/items', { params: { path: { id }, query: { cursor } } })),
  itemsFile: (id: string) => `/v1/distributions/${id}/items.csv`,
  plan: async (wanted: NewDistribution): Promise<Schemas['DistributionPlan']> => (await body(api.POST('/v1/distributions', { params: { query: { dry_run: true } }, body: wanted }))) as Schemas['DistributionPlan'],
  run: async (wanted: NewDistribution): Promise<Schemas['Job']> => (await body(api.POST('/v1/distributions', { body: wanted }))) as Schemas['Job'],
  undo: (id: string) => body(api.POST('/v1/distributions/{id}/undo', at(id))),
}
