/** What each member says of itself. */
export const ADVERTS_TOPIC = "computalot/adverts/1"
/** What the coordinator has work for. */
export const OFFERS_TOPIC = "computalot/offers/1"

/** Every topic there is: nodes neither join nor relay another. */
export const TOPICS = [ADVERTS_TOPIC, OFFERS_TOPIC] as const
